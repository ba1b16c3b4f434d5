"""A smaller model computes what the larger one does without the channels, or without the layers,
that went."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.compress import prune_structured
from bigmodel_jax.core import params
from bigmodel_jax.models import MODELS

LLAMA = dataclasses.replace(MODELS["llama"].tiny(), num_layers=4)
VIT = MODELS["vit"].tiny()


def weights_of(model, seed=0):
    """Values for every parameter, biases too; norms stay near 1."""
    rng, spec = np.random.default_rng(seed), params.paths(model.make().spec)
    means = {path: 1.0 if path.endswith("scale") else 0.0 for path in spec}
    leaves = {path: means[path] + 0.05 * rng.standard_normal(p.shape, np.float32) for path, p in spec.items()}
    return jax.tree.map(jnp.asarray, params.from_paths(leaves))


def batch_of(model):
    rng = np.random.default_rng(0)
    if model is VIT:
        return {"image": rng.standard_normal((2, *VIT.image_shape), np.float32)}
    return {"tokens": rng.integers(0, 64, (2, 8)).astype(np.int32)}


@pytest.mark.slow
@pytest.mark.parametrize("model", [LLAMA, VIT], ids=["llama", "vit"])
def test_fewer_channels_are_the_model_with_those_channels_zeroed(model):
    weights, readers = weights_of(model), prune_structured.channel_readers(model)
    rng = np.random.default_rng(0)
    scores = {path: rng.random((model.num_layers, model.mlp_dim)) for path in readers}
    kept = prune_structured.kept_channels(scores, 24)
    smaller, tree = prune_structured.narrower(model, weights, kept)
    assert smaller.mlp_dim == 24
    assert {p: x.shape for p, x in params.paths(tree).items()} == {
        p: q.shape for p, q in params.paths(smaller.make().spec).items()
    }
    flat = params.paths(weights)
    for path, channels in kept.items():
        mask = np.zeros((model.num_layers, model.mlp_dim, 1), np.float32)
        np.put_along_axis(mask[..., 0], channels, 1, axis=1)
        flat = flat | {path: flat[path] * mask}
    zeroed = jax.jit(model.make().apply)(params.from_paths(flat), batch_of(model)).value
    np.testing.assert_allclose(jax.jit(smaller.make().apply)(tree, batch_of(model)).value, zeroed, rtol=1e-4, atol=1e-5)
    whole = jax.jit(model.make().apply)(weights, batch_of(model)).value
    assert np.abs(np.asarray(whole) - zeroed).max() > 1e-3


def test_the_channels_with_the_highest_scores_stay():
    readers = prune_structured.channel_readers(LLAMA)
    weights = weights_of(LLAMA)
    squares = {path: np.random.default_rng(0).random((4, LLAMA.mlp_dim)) for path in readers}
    (path, found), *_ = prune_structured.channel_scores(weights, readers, squares).items()
    down = np.asarray(params.paths(weights)[path], np.float64)
    np.testing.assert_allclose(found, np.sqrt(squares[path]) * np.linalg.norm(down, axis=-1))
    kept = prune_structured.kept_channels({path: found}, 10)[path]
    for row, channels in zip(found, kept, strict=True):
        assert set(channels) == set(np.argsort(-row)[:10])


def test_fewer_layers_are_the_model_that_skips_them():
    weights = weights_of(LLAMA)
    smaller, tree, gone = prune_structured.fewer_layers(LLAMA, weights, np.array([0.5, 0.1, 0.3, 0.2]), 0.5)
    assert (smaller.num_layers, gone) == (2, [1, 3])
    flat = params.paths(weights)
    # A layer whose two projections into the residual are zero adds nothing.
    for path in ("layers/attn/o", "layers/mlp/down"):
        flat[path] = flat[path].at[np.array(gone)].set(0)
    skipped = jax.jit(LLAMA.make().apply)(params.from_paths(flat), batch_of(LLAMA)).value
    np.testing.assert_allclose(
        jax.jit(smaller.make().apply)(tree, batch_of(LLAMA)).value, skipped, rtol=1e-4, atol=1e-5
    )


def test_one_layer_stays():
    assert prune_structured.fewer_layers(LLAMA, weights_of(LLAMA), np.arange(4.0), 0.99)[0].num_layers == 1


@pytest.mark.parametrize(
    ("check", "model", "says"),
    [
        (prune_structured.check_layers, MODELS["mlp"].tiny(), "MLPConfig is not a single stack of layers"),
        (prune_structured.check_layers, MODELS["gemma2"].tiny(), "alternate between attention windows"),
        (prune_structured.check_layers, MODELS["smollm3"].tiny(), "are of several kinds"),
        (prune_structured.channel_readers, MODELS["gpt2"].tiny(), "GPT2Config has no field mlp_dim"),
        (prune_structured.channel_readers, MODELS["mixtral"].tiny(), "MixtralConfig has experts"),
    ],
    ids=["mlp", "gemma2", "smollm3", "gpt2", "mixtral"],
)
def test_models_that_cannot_become_smaller_so_are_refused_in_one_line(check, model, says):
    with pytest.raises(ValueError, match=says) as error:
        check(model)
    assert "\n" not in str(error.value)
