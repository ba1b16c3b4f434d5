"""DeBERTa-v3: published sizes, initial distributions, and its buckets of distances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import DebertaConfig, deberta
from bigmodel_jax.models.deberta import PRESETS

# The encoder, as transformers counts DebertaV2Model; the model cards say 44M, 86M and 304M beside
# the embedding.
PUBLISHED = {"deberta-v3-small": 141_304_320, "deberta-v3-base": 183_831_552, "deberta-v3-large": 434_012_160}
TINY = DebertaConfig.tiny()
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 1, 64)


@pytest.mark.parametrize("name", PRESETS)
def test_published_counts(name):
    cfg = dataclasses.replace(PRESETS[name], head="none")
    assert params.count(cfg.make().spec) == PUBLISHED[name]


def test_initial_distributions():
    """transformers' _init_weights draws every matrix from normal(0.02). Biases start at zero and
    norms at one."""
    cfg = DebertaConfig(vocab_size=1000, num_layers=2, embed_dim=128, num_heads=4, mlp_dim=256)
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith(("scale", "bias")):
            assert (x == path.endswith("scale")).all(), path
        else:
            assert float(x.std()) == pytest.approx(0.02, rel=5 / (2 * x.size) ** 0.5), path


def test_buckets_of_distances():
    """Each near distance has its own bucket, far ones share buckets by the logarithm, and both
    directions are alike. The last bucket holds all distances beyond the end."""
    found = deberta.buckets(256, 512)
    assert len(found) == 1023
    np.testing.assert_array_equal(found, -found[::-1])
    np.testing.assert_array_equal(found[511 : 511 + 129], np.arange(129))
    assert (np.diff(found) >= 0).all()
    assert found[-1] == 255
    assert 129 <= found[511 + 130] < 135


def test_only_distances_matter():
    """A position enters the model only as a difference of two positions."""
    model = TINY.make()
    tree = jax.tree.map(lambda x: 10 * x, params.init(model.spec, jax.random.key(0)))
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    here, there = (model.apply(tree, {"tokens": TOKENS, "positions": positions + n}).value for n in (0, 7))
    np.testing.assert_array_equal(here, there)
    mixed = model.apply(tree, {"tokens": TOKENS, "positions": positions[:, ::-1]}).value
    assert not np.allclose(here, mixed, atol=1e-3)


def test_padding_is_not_seen():
    model = TINY.make()
    tree = jax.tree.map(lambda x: 10 * x, params.init(model.spec, jax.random.key(0)))
    segments = jnp.array([[1] * 9 + [0] * 3] * 2)
    first, second = (
        model.apply(tree, {"tokens": tokens, "segment_ids": segments}).value
        for tokens in (TOKENS, TOKENS.at[:, 9:].set(5))
    )
    np.testing.assert_array_equal(first[:, :9], second[:, :9])


def test_impossible_buckets_are_named():
    with pytest.raises(ValueError, match=r"model\.num_buckets = 62"):
        dataclasses.replace(TINY, num_buckets=62).validate(ParallelConfig())
