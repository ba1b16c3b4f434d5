"""The autoencoder of latent diffusion against diffusers' AutoencoderKL: latents, reconstructions,
loss, gradients, export.

Tolerance 1e-4 absolute. One reference has attention and convolutions around the latent, and the
other has neither.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.models import autoencoder
from bigmodel_jax.objectives.autoencoding import divergence_of
from bigmodel_jax.pretrained import folder
from reference import distance, read

TOLERANCE = 1e-4
every_form = pytest.mark.parametrize("name", ["autoencoder", pytest.param("autoencoder_plain", marks=pytest.mark.slow)])


def reconstruction(cfg, tree, ref):
    """(image, mean, log variance) with the reference's noise."""
    mean, log_variance = autoencoder.encode(cfg, tree, jnp.asarray(ref.arrays["image"]))
    latent = mean + jnp.exp(log_variance / 2) * ref.arrays["noise"]
    return autoencoder.decode(cfg, tree, latent), mean, log_variance


@every_form
def test_latents_and_reconstructions(name, reference, measured):
    ref = reference(name)
    image, mean, log_variance = jax.jit(lambda tree: reconstruction(ref.cfg, tree, ref))(ref.tree)
    pairs = {"reconstruction": image, "mean": mean, "log_variance": log_variance}
    assert 0.3 < ref.arrays["reconstruction"].std() < 30, "outputs of a scale at which 1e-4 says something"
    worst = max(distance(ours, ref.arrays[key]) for key, ours in pairs.items())
    assert measured(name, "forward", worst) <= TOLERANCE
    np.testing.assert_allclose(divergence_of(mean, log_variance), ref.arrays["kl"], rtol=1e-4)


@pytest.mark.few("autoencoder")
@every_form
def test_gradients_of_every_parameter(name, reference, measured):
    """Errors are relative to the norm of the parameter's gradient."""
    ref = reference(name)

    def loss(tree):
        image, mean, log_variance = reconstruction(ref.cfg, tree, ref)
        return jnp.mean((image - ref.arrays["image"]) ** 2) + 1e-2 * jnp.mean(divergence_of(mean, log_variance))

    value, ours = jax.jit(jax.value_and_grad(loss))(ref.tree)
    assert abs(float(value) - float(ref.arrays["loss"])) <= TOLERANCE
    theirs = params.paths(ref.gradients)
    # The attention's key bias adds the same to all scores of a query: its gradient is zero, and
    # noise has no scale.
    errors = {
        path: distance(gradient, theirs[path]) / max(np.linalg.norm(theirs[path]), 1e-3)
        for path, gradient in params.paths(ours).items()
    }
    worst = max(errors, key=errors.get)
    assert measured(name, "backward", errors[worst]) <= TOLERANCE, worst


@every_form
def test_export_gives_the_same_bits(name, reference, measured, tmp_path):
    ref = reference(name)
    flat = {path: np.asarray(x) for path, x in params.paths(ref.tree).items()}
    folder.save_params(ref.family, ref.cfg, flat, tmp_path)
    theirs, ours = folder.open_weights(ref.folder), folder.open_weights(tmp_path)
    assert set(ours) == set(theirs)
    differing = [n for n in theirs if ours[n].read().tobytes() != theirs[n].read().tobytes()]
    assert measured(name, "export", len(differing)) == 0, differing
    assert folder.read_config(tmp_path) == (ref.family, ref.cfg)


@pytest.mark.slow
def test_older_names_of_the_attention_are_read(reference, tmp_path):
    """Files written before diffusers 0.16 call its maps query, key, value and proj_attn."""
    from safetensors.numpy import save_file

    ref = reference("autoencoder")
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in folder.open_weights(ref.folder).items():
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor.read()
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_bytes((ref.folder / "config.json").read_bytes())
    assert sum("proj_attn" in name for name in tensors) == 4
    again = params.paths(read(ref.family, ref.cfg, folder.open_weights(tmp_path)))
    assert all(np.array_equal(again[path], x) for path, x in params.paths(ref.tree).items())
