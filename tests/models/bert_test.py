"""BERT: published sizes, initial distributions, and what its heads and masks owe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import BertConfig
from bigmodel_jax.models.bert import PRESETS

# The encoder with its pooler, as transformers counts BertModel; the papers say 110M, 340M and
# 22.7M.
PUBLISHED = {
    "bert-base-uncased": 109_482_240,
    "bert-base-cased": 108_310_272,
    "bert-large-uncased": 335_141_888,
    "bert-large-cased": 333_579_264,
    "minilm-l6": 22_713_216,
}
TINY = BertConfig.tiny()
# By numpy: JAX would compile, in every process that collects tests. Tests add 1, so 63 is left out.
TOKENS = jnp.asarray(np.random.default_rng(1).integers(1, 63, (2, 12), np.int32))


@pytest.mark.parametrize("name", PRESETS)
def test_published_counts(name):
    cfg = dataclasses.replace(PRESETS[name], head="none")
    assert params.count(cfg.make().spec) == PUBLISHED[name]


def test_initial_distributions():
    """transformers' _init_weights draws every matrix from normal(0.02). Biases start at zero and
    norms at one."""
    cfg = BertConfig(vocab_size=1000, num_layers=2, embed_dim=128, num_heads=4, mlp_dim=256, head="pretraining")
    for path, x in params.paths(params.init(cfg.make().spec, jax.random.key(0))).items():
        if path.endswith("scale"):
            assert (x == 1).all(), path
        elif path.endswith("bias"):
            assert (x == 0).all(), path
        else:
            assert abs(float(x.mean())) < 5 * 0.02 / x.size**0.5, path
            assert float(x.std()) == pytest.approx(0.02, rel=5 / (2 * x.size) ** 0.5), path


def value(cfg, **batch):
    model = cfg.make()
    # Far from the small initial values, at which nothing depends on much.
    tree = jax.tree.map(lambda x: 10 * x, params.init(model.spec, jax.random.key(0)))
    return model.apply(tree, {"tokens": TOKENS} | batch).value


def test_padding_is_not_seen():
    """The content of padded places changes no other state."""
    segments = jnp.array([[1] * 9 + [0] * 3] * 2)
    other = value(TINY, tokens=TOKENS.at[:, 9:].set(5), segment_ids=segments)
    np.testing.assert_array_equal(value(TINY, segment_ids=segments)[:, :9], other[:, :9])


def test_every_token_sees_both_sides():
    for place in (0, 11):
        changed = value(TINY, tokens=TOKENS.at[:, place].add(1))
        assert (jnp.abs(value(TINY) - changed).max(-1) > 1e-6).all()


def test_token_types_matter():
    assert not np.allclose(value(TINY), value(TINY, token_types=jnp.ones_like(TOKENS)), atol=1e-3)


@pytest.mark.parametrize("head", ["masked_lm", "classification"])
def test_dropout_needs_a_key_and_training(head):
    cfg = dataclasses.replace(TINY, dropout=0.5, head=head, num_classes=3)
    model = cfg.make()
    tree = params.init(model.spec, jax.random.key(0))
    calls = [(None, True), (jax.random.key(1), False), (jax.random.key(1), True), (jax.random.key(2), True)]
    plain, still, first, second = (
        np.asarray(model.apply(tree, {"tokens": TOKENS}, rng=rng, train=train).value) for rng, train in calls
    )
    np.testing.assert_array_equal(plain, still)
    assert not np.allclose(plain, first)
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_heads": 3}, r"model\.num_heads = 3 does not divide"),
        ({"num_layers": 0}, r"model\.num_layers = 0"),
        ({"head": "classification"}, r"model\.num_classes = 0"),
        ({"vocab_size": 65}, r"model\.vocab_size = 65 is not divisible by parallel\.tensor"),
    ],
)
def test_impossible_sizes_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(TINY, **change).validate(ParallelConfig(tensor=2))
