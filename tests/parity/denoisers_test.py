"""DiT against the published architecture in torch: same weights, same outputs, states and gradients.

Tolerance 1e-4 absolute; the outputs have a standard deviation of about 1. Labels include the hidden one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import fixture_folder, load

from bigmodel_jax.core import params
from bigmodel_jax.models.dit import positions
from bigmodel_jax.nn import stack
from bigmodel_jax.pretrained import folder

TOLERANCE = 1e-4
NAME = "dit"


@pytest.fixture(scope="module")
def ref(request, tmp_path_factory):
    python = request.config.getoption("--reference-python")
    return load(fixture_folder(NAME, python, tmp_path_factory.mktemp("reference")))


def distance(a, b) -> float:
    assert np.shape(a) == np.shape(b)
    return float(np.max(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32))))


def batch_of(ref):
    return {name: jnp.asarray(ref.arrays[name]) for name in ("image", "timestep", "label")}


@pytest.mark.slow
def test_outputs(ref, measured):
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(ref)).value
    assert 0.3 < ref.arrays["logits"].std() < 30, "outputs of a scale at which 1e-4 says something"
    assert measured(NAME, "forward", distance(ours, ref.arrays["logits"])) <= TOLERANCE


@pytest.mark.slow
def test_positions(ref, measured):
    theirs = folder.open_weights(ref.folder)["pos_embed"].read()[0]
    assert measured(NAME, "forward", distance(positions(ref.cfg), theirs)) <= TOLERANCE


@pytest.mark.slow
def test_hidden_states(ref, measured, monkeypatch):
    """What goes into every layer."""
    states, run = [], stack.run

    def recorded(block, stacked, x, xs=None, **options):
        def watched(p, x, xs):
            states.append(x)
            return block(p, x, xs)

        return run(watched, stacked, x, xs, **(options | {"unroll": True, "remat": "none"}))

    monkeypatch.setattr(stack, "run", recorded)
    ref.model.apply(ref.tree, batch_of(ref))
    worst = max(distance(x, ref.arrays[f"states/{n}"]) for n, x in enumerate(states))
    assert len(states) == ref.cfg.num_layers
    assert measured(NAME, "forward", worst) <= TOLERANCE


@pytest.mark.slow
def test_gradients_of_every_parameter(ref, measured):
    """Relative to the norm of the parameter's gradient."""
    noise = ref.arrays["noise"]

    def loss(tree):
        out = ref.model.apply(tree, batch_of(ref)).value
        channels = noise.shape[-1]
        return jnp.mean((out[..., :channels] - noise) ** 2) + jnp.mean(out[..., channels:] ** 2)

    value, ours = jax.jit(jax.value_and_grad(loss))(ref.tree)
    assert measured(NAME, "forward", abs(float(value) - float(ref.arrays["loss"]))) <= TOLERANCE
    theirs = params.paths(ref.gradients)
    errors = {}
    for path, gradient in params.paths(ours).items():
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no scale.
        errors[path] = distance(gradient, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3)
    worst = max(errors, key=errors.get)
    assert measured(NAME, "backward", errors[worst]) <= TOLERANCE, worst


@pytest.mark.slow
def test_export_gives_the_same_bits(ref, measured, tmp_path):
    """Theirs -> ours -> theirs: every tensor but the fixed positions bit for bit, and the same config."""
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = dict(folder.open_weights(ref.folder)), folder.open_weights(tmp_path)
    del theirs["pos_embed"]
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(NAME, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)
