"""A bag of embeddings: a text classifier over mean embeddings of words, bigrams and n-grams.

Joulin et al., "Bag of Tricks for Efficient Text Classification" (fastText), arXiv:1607.01759,
section 2. Character n-grams follow Bojanowski et al., arXiv:1607.04606. A hidden layer and the
class logits follow the means. Words, bigrams and n-grams are averaged separately, and the means are
added: in one mean, the many n-grams would drown the words.

Shapes: B batch, T words, N character n-grams, D embed, V n-gram buckets.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import initial
from bigmodel_jax.core.initial import Initial
from bigmodel_jax.core.params import Tree, normal
from bigmodel_jax.core.ranges import Classes, Count, CountOrZero, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.sizes import Cut
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation
from bigmodel_jax.nn.dropout import dropout


@dataclasses.dataclass(frozen=True)
class BagOfEmbeddingsConfig(ModelConfig):
    """A classifier of texts by the mean of their words' embeddings.

    The architecture is fastText's (arXiv:1607.01759), with an optional hidden layer.
    """

    vocab_size: Count = 20_000  # tokens in the vocabulary
    num_classes: Classes = 2  # number of classes
    embed_dim: Count = 64  # width
    hidden_dim: CountOrZero = 64  # width of the hidden layer; 0 = no hidden layer
    bigram_buckets: CountOrZero = (
        65_536  # rows of the table into which pairs of neighbouring words are hashed; 0 = no bigrams
    )
    ngram_buckets: CountOrZero = 0  # rows for the character n-grams that the data numbers; 0 = none
    embed_std: NonNegative = 0.1  # standard deviation of the initial embeddings
    dropout: ShareBelowOne = 0.0  # dropout rate of the mean, in training
    word_dropout: ShareBelowOne = 0.0  # share of a text's words that are left out, in training
    activation: Activation = "relu"  # activation of the hidden layer
    init: Initial = "default"  # kernels' distribution; default: He's normal for the hidden layer, LeCun's for the head
    init_std: NonNegative = 0.02  # standard deviation of "normal", "truncated_normal" and "uniform"

    SIZES: ClassVar[tuple] = (
        *(Cut(name, "vocab") for name in ("vocab_size", "bigram_buckets", "ngram_buckets")),
        Cut("hidden_dim", "mlp"),
    )

    def inputs(self):
        return {"tokens": None}

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "BagOfEmbeddingsConfig":
        return cls(vocab_size=64, embed_dim=16, hidden_dim=16, bigram_buckets=64, embed_std=0.5)


def spec(cfg: BagOfEmbeddingsConfig) -> Tree:
    """embed table (vocab, D), bigrams and ngrams (buckets, D), hidden (D, hidden_dim) and head."""
    init = normal(cfg.embed_std)
    tree = {"embed": linear.embedding_spec(cfg.vocab_size, cfg.embed_dim, init=init)}
    if cfg.bigram_buckets:
        tree["bigrams"] = linear.embedding_spec(cfg.bigram_buckets, cfg.embed_dim, init=init)
    if cfg.ngram_buckets:
        tree["ngrams"] = linear.embedding_spec(cfg.ngram_buckets, cfg.embed_dim, init=init)
    if cfg.hidden_dim:
        he = normal((2 / cfg.embed_dim) ** 0.5)  # for ReLU: He et al., arXiv:1502.01852
        tree["hidden"] = linear.linear_spec(cfg.embed_dim, cfg.hidden_dim, init=he, bias=True)
    last, axis = (cfg.hidden_dim, "mlp") if cfg.hidden_dim else (cfg.embed_dim, "embed")
    tree |= {"head": linear.linear_spec(last, cfg.num_classes, axes=(axis, None), bias=True)}
    return initial.weights(tree, cfg.init, cfg.init_std)


def hash_pairs(first: jax.Array, second: jax.Array, buckets: int) -> jax.Array:
    """The number of the bucket, (...) int32, of each pair of word ids (...).

    The hash multiplies and mixes in 32 bits, with MurmurHash3's constants for its final mix.
    """
    x = first.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + second.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return ((x ^ (x >> 16)) % jnp.uint32(buckets)).astype(jnp.int32)


def mean_embedding(cfg: BagOfEmbeddingsConfig, p: Tree, tokens_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
    """Returns (B, D): the mean over real words plus the mean over pairs of real neighbours."""
    total = mean(linear.embed(p["embed"], tokens_BT), real_BT)
    if cfg.bigram_buckets:
        pairs = hash_pairs(tokens_BT[:, :-1], tokens_BT[:, 1:], cfg.bigram_buckets)
        total += mean(linear.embed(p["bigrams"], pairs), real_BT[:, :-1] & real_BT[:, 1:])
    return total


def mean(x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    """Returns (B, D): the mean of x (B, T, D) where `real` is true; zeros for an empty row."""
    # In float32: bfloat16 holds no odd number above 256.
    total = jnp.einsum("btd,bt->bd", x_BTD, real_BT.astype(x_BTD.dtype), preferred_element_type=jnp.float32)
    return (total / jnp.maximum(real_BT.sum(axis=1, dtype=jnp.float32), 1)[:, None]).astype(x_BTD.dtype)


def mean_ngrams(p: Tree, ngrams_BN: jax.Array, real_BN: jax.Array) -> jax.Array:
    """Returns (B, D): the mean embedding of the real n-grams.

    It is counts (B, V) times the table (V, D). A lookup would be slower: a text has hundreds of
    n-grams, and the gradient of a lookup is written row by row.
    """
    table = p["ngrams"]["table"]
    rows = jnp.arange(ngrams_BN.shape[0])[:, None]
    # In float32: in bfloat16, 256 + 1 is 256.
    counts_BV = jnp.zeros((ngrams_BN.shape[0], len(table))).at[rows, ngrams_BN].add(real_BN.astype(jnp.float32))
    counts_BV = constrain(counts_BV, "batch", "vocab") / jnp.maximum(counts_BV.sum(axis=1), 1)[:, None]
    return linear.project(counts_BV.astype(table.dtype), table)


def apply(cfg: BagOfEmbeddingsConfig, p: Tree, batch: dict, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, num_classes).

    batch: tokens (B, T), of which those with segment_ids 0 are padding; ngrams (B, N), 0 being
    padding.
    """
    tokens = batch["tokens"]
    real = batch.get("segment_ids", jnp.ones_like(tokens)) > 0
    word_rng, mean_rng = jax.random.split(rng) if train and (cfg.dropout or cfg.word_dropout) else (None, None)
    if train and cfg.word_dropout:
        real &= jax.random.bernoulli(word_rng, 1 - cfg.word_dropout, real.shape)
    x = mean_embedding(cfg, p, tokens, real)
    if cfg.ngram_buckets and "ngrams" in batch:
        ngrams = batch["ngrams"]
        real = ngrams > 0
        if train and cfg.word_dropout:
            real &= jax.random.bernoulli(jax.random.fold_in(word_rng, 1), 1 - cfg.word_dropout, real.shape)
        x += mean_ngrams(p, ngrams, real)
    x = constrain(x, "batch", None)
    if train and cfg.dropout:
        x = dropout(cfg.dropout, x, mean_rng)
    if cfg.hidden_dim:
        x = constrain(ACTIVATIONS[cfg.activation](linear.linear(p["hidden"], x)), "batch", "mlp")
    return Out(linear.linear(p["head"], x))
