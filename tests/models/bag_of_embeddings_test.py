"""The bag of embeddings against a plain loop over words and pairs; its dropouts, padding and
hash."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.core import params
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.bag_of_embeddings import BagOfEmbeddingsConfig, hash_pairs, mean, mean_ngrams

CFG = BagOfEmbeddingsConfig.tiny()
TOKENS = jnp.asarray(np.int32(np.random.default_rng(0).integers(2, 64, (4, 7))))
LENGTHS = (7, 1, 4, 2)
# One bucket twice in a text, and padding.
NGRAMS = jnp.asarray(np.int32([[3, 3, 31, 0], [1, 0, 0, 0], [2, 9, 17, 4], [5, 6, 0, 0]]))
BATCH = {"tokens": TOKENS, "segment_ids": jnp.asarray([[1] * n + [0] * (7 - n) for n in LENGTHS], jnp.int32)}


def make(**changes):
    cfg = dataclasses.replace(CFG, **changes)
    model = cfg.make()
    return model, params.init(model.spec, jax.random.key(0))


@pytest.mark.parametrize("bigram_buckets", [0, 64])
@pytest.mark.parametrize("hidden_dim", [0, 16])
@pytest.mark.parametrize("ngram_buckets", [0, 32])
def test_it_is_a_mean_over_each_kind(bigram_buckets, hidden_dim, ngram_buckets):
    model, p = make(bigram_buckets=bigram_buckets, hidden_dim=hidden_dim, ngram_buckets=ngram_buckets)
    ours = model.apply(p, BATCH | {"ngrams": NGRAMS}).value
    for row, length in enumerate(LENGTHS):
        words = np.asarray(TOKENS[row, :length])
        x = np.mean([p["embed"]["table"][w] for w in words], axis=0)
        if bigram_buckets and length > 1:
            pairs = itertools.pairwise(words)
            x += np.mean([p["bigrams"]["table"][hash_pairs(*map(jnp.int32, pair), 64)] for pair in pairs], axis=0)
        if ngram_buckets:
            x += np.mean([p["ngrams"]["table"][n] for n in NGRAMS[row] if n], axis=0)
        if hidden_dim:
            x = np.maximum(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
        np.testing.assert_allclose(ours[row], x @ p["head"]["kernel"] + p["head"]["bias"], atol=1e-5)


def test_what_stands_in_the_padding_plays_no_part():
    model, p = make()
    other = jnp.where(BATCH["segment_ids"] > 0, TOKENS, 5)
    np.testing.assert_array_equal(model.apply(p, BATCH).value, model.apply(p, BATCH | {"tokens": other}).value)


def test_the_order_matters_to_pairs_alone():
    backwards = {"tokens": TOKENS[:, ::-1]}
    for buckets, equal in ((0, True), (64, False)):
        model, p = make(bigram_buckets=buckets)
        a, b = model.apply(p, {"tokens": TOKENS}).value, model.apply(p, backwards).value
        assert np.allclose(a, b, atol=1e-6) == equal


def test_the_hash_spreads_pairs_evenly_and_knows_their_order():
    first, second = (x.ravel() for x in jnp.meshgrid(jnp.arange(300), jnp.arange(300)))
    buckets = np.asarray(hash_pairs(first, second, 1000))
    counts = np.bincount(buckets, minlength=1000)
    assert len(counts) == 1000
    # Poisson with mean 90: the variance of a fair hash is about the mean.
    assert 0.8 < counts.var() / counts.mean() < 1.2
    assert (buckets != np.asarray(hash_pairs(second, first, 1000)))[first != second].mean() > 0.99


@pytest.mark.parametrize("kind", ["dropout", "word_dropout"])
def test_dropout_acts_in_training_alone(kind):
    model, p = make(**{kind: 0.5})
    plain, _ = make()
    np.testing.assert_array_equal(model.apply(p, BATCH).value, plain.apply(p, BATCH).value)
    draws = [model.apply(p, BATCH, rng=jax.random.key(k), train=True).value for k in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-3


def test_initial_values():
    _, p = make(vocab_size=2048, bigram_buckets=4096, embed_std=0.1)
    for name in ("embed", "bigrams"):
        assert p[name]["table"].std() == pytest.approx(0.1, rel=0.02)
    assert not p["head"]["bias"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, r"model\.num_classes = 1; it must be 2 or more"),
        ({"word_dropout": 1.0}, r"model\.word_dropout = 1\.0; it must be 0 or more and below 1"),
        ({"bigram_buckets": 63}, r"model\.bigram_buckets = 63 is not divisible by parallel\.tensor = 2"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CFG, **changes).validate(ParallelConfig(tensor=2))


def test_a_text_of_more_parts_than_bfloat16_counts_has_their_mean():
    """bfloat16 holds no odd number above 256, so a count in bfloat16 would stay at 256."""
    x = jnp.asarray(np.random.default_rng(0).normal(1, 0.1, (1, 301, 64)), jnp.bfloat16)
    exact = np.asarray(x, np.float64).mean(axis=1)
    np.testing.assert_allclose(np.asarray(mean(x, jnp.ones((1, 301), bool)), np.float64), exact, rtol=2**-8)
    ngrams = {"ngrams": {"table": jnp.ones((4, 8), jnp.bfloat16)}}
    assert (mean_ngrams(ngrams, jnp.full((1, 301), 3), jnp.ones((1, 301), bool)) == 1).all()
