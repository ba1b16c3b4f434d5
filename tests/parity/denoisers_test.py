"""DiT against the published architecture in torch, PixArt and MM-DiT against diffusers: same
outputs, states, gradients.

Tolerance 1e-4 absolute; the outputs have a standard deviation of about 1. Labels include the hidden
one, texts differ in length.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import ImageSampleConfig
from bigmodel_jax.core import params
from bigmodel_jax.inference.sample_images import sample_images
from bigmodel_jax.models.dit import positions
from bigmodel_jax.objectives import Diffusion, FlowMatching
from bigmodel_jax.objectives.flow_matching import sigmas
from bigmodel_jax.pretrained import folder
from reference import distance, record_layers

TOLERANCE = 1e-4
CONDITIONS = {
    "dit": ("label",),
    "pixart": ("text_states", "segment_ids"),
    "mmdit": ("text_states", "text_pooled"),
}

every_family = pytest.mark.parametrize("name", CONDITIONS)


def batch_of(name, ref):
    return {key: jnp.asarray(ref.arrays[key]) for key in ("image", "timestep", *CONDITIONS[name])}


@every_family
def test_outputs(name, reference, measured):
    ref = reference(name)
    ours = jax.jit(ref.model.apply)(ref.tree, batch_of(name, ref)).value
    assert 0.3 < ref.arrays["logits"].std() < 30, "outputs of a scale at which 1e-4 says something"
    assert measured(name, "forward", distance(ours, ref.arrays["logits"])) <= TOLERANCE


@pytest.mark.slow
def test_positions(reference, measured):
    name, ref = "dit", reference("dit")
    theirs = folder.open_weights(ref.folder)["pos_embed"].read()[0]
    assert measured(name, "forward", distance(positions(ref.cfg), theirs)) <= TOLERANCE


@pytest.mark.exhaustive
@every_family
def test_hidden_states(name, reference, measured, monkeypatch):
    """The test compares the input of each layer."""
    ref = reference(name)
    stacks = record_layers(monkeypatch)
    ref.model.apply(ref.tree, batch_of(name, ref))
    states = [x for states in stacks for x in (states if name == "mmdit" else states[:-1])]
    worst = max(distance(x, ref.arrays[f"states/{n}"]) for n, x in enumerate(states))
    assert len(states) == ref.cfg.num_layers
    assert measured(name, "forward", worst) <= TOLERANCE


@every_family
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient."""
    ref = reference(name)
    noise = ref.arrays["noise"]

    def loss(tree):
        out = ref.model.apply(tree, batch_of(name, ref)).value
        channels = noise.shape[-1]
        loss = jnp.mean((out[..., :channels] - noise) ** 2)
        return loss + jnp.mean(out[..., channels:] ** 2) if out.shape[-1] > channels else loss

    value, ours = jax.jit(jax.value_and_grad(loss))(ref.tree)
    assert measured(name, "forward", abs(float(value) - float(ref.arrays["loss"]))) <= TOLERANCE
    theirs = params.paths(ref.gradients)
    errors = {}
    for path, gradient in params.paths(ours).items():
        # A key bias adds the same to all logits of a query: its gradient is zero, and noise has no
        # scale.
        errors[path] = distance(gradient, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3)
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


@every_family
def test_export_gives_the_same_bits(name, reference, measured, tmp_path):
    """An import followed by an export gives every tensor but the fixed positions bit for bit, and
    the same config."""
    ref = reference(name)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = dict(folder.open_weights(ref.folder)), folder.open_weights(tmp_path)
    theirs.pop("pos_embed", None)
    assert set(ours) == set(theirs)
    # Torch and numpy round sines differently.
    theirs.pop("pos_embed.pos_embed", None)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(name, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


@pytest.mark.parametrize("name", ["pixart"])
def test_sampling_is_diffusers_ddim_with_guidance(name, reference, measured):
    """Both sides take five steps of diffusers' scheduler from the same noise."""
    ref = reference(name)
    conditions = {key: ref.arrays[key] for key in CONDITIONS[name]}
    cfg, noise = ImageSampleConfig(steps=5, guidance=2.5), ref.arrays["noise"]
    # Its pictures have values of -1 .. 1, cut off there.
    theirs = np.clip(ref.arrays["sampled"] / 2 + 0.5, 0, 1)
    assert theirs.std() > 0.1, "pictures that are not all one colour"
    ours = sample_images(ref.model, ref.tree, Diffusion(), conditions, noise, cfg)
    assert measured(name, "decode", distance(ours, theirs)) <= TOLERANCE


@pytest.mark.parametrize("name", ["mmdit"])
def test_sampling_is_diffusers_flow_matching_scheduler_with_guidance(name, reference, measured):
    """The test compares the sigmas, and the image after five Euler steps from the same noise."""
    ref = reference(name)
    objective = FlowMatching(sampler="euler", shift=3.0)
    np.testing.assert_allclose(sigmas(objective, 5), ref.arrays["sigmas"], atol=1e-6)
    conditions = {key: ref.arrays[key] for key in CONDITIONS[name]}
    theirs = np.clip(ref.arrays["sampled"] / 2 + 0.5, 0, 1)
    assert theirs.std() > 0.1, "pictures that are not all one colour"
    cfg = ImageSampleConfig(steps=5, guidance=2.5)
    ours = sample_images(ref.model, ref.tree, objective, conditions, ref.arrays["noise"], cfg)
    assert measured(name, "decode", distance(ours, theirs)) <= TOLERANCE
