"""DeBERTa-v3: attention to content and to relative positions, and no positions in the input.

He et al., arXiv:2006.03654 and 2111.09543. The logit of a query for a key is the sum of
content-to-content, content-to-distance and distance-to-content. Distances fall into buckets that
grow logarithmically beyond half of `num_buckets`.

Shapes: B batch, T queries, S keys, D embed, H heads, h head_dim, V vocab, L layers, R rows of the
distance table.
"""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import bert
from bigmodel_jax.models.base import POST_NORM, Entry, Model, ModelConfig, Out, parts_of
from bigmodel_jax.models.compute import StackCompute
from bigmodel_jax.models.decoder import where
from bigmodel_jax.nn import linear, norm
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.dropout import dropout


@dataclasses.dataclass(frozen=True)
class DebertaConfig(ModelConfig):
    """A DeBERTa-v3 encoder with disentangled attention (arXiv:2111.09543).

    The reference implementation is transformers' `DebertaV2ForMaskedLM`. The defaults are those of
    deberta-v3-base, which was trained with dropout 0.1.
    """

    vocab_size: Count = 128_100  # tokens in the vocabulary
    num_layers: Depth = 12  # number of blocks
    embed_dim: Count = 768  # width of the residual stream
    num_heads: Count = 12  # attention heads of a layer
    mlp_dim: Count = 3072  # hidden width of the feed-forward layer
    max_seq_len: Count = 512  # longest sequence, in tokens
    num_buckets: Count = 256  # how many groups of distances share one embedding, in each direction
    head: Literal["none", "masked_lm"] = "masked_lm"  # none: the model returns the hidden states
    norm_eps: NonNegative = 1e-7  # added to the variance in every norm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    dropout: ShareBelowOne = 0.0  # dropout rate in training
    compute: StackCompute = StackCompute()

    SIZES: ClassVar[tuple] = bert.SIZES

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def inputs(self):
        return {"tokens": None}

    def no_mup(self, depth):
        return POST_NORM if depth else ""

    def make(self) -> Model:
        return Model(spec(self), parts_of(self, enter, block, leave))

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if not 4 <= self.num_buckets < 2 * (self.max_seq_len - 1):
            raise ValueError(
                f"model.num_buckets = {self.num_buckets}; it must be 4 or more, and less than twice the longest "
                f"distance, model.max_seq_len - 1 = {self.max_seq_len - 1}"
            )

    @classmethod
    def tiny(cls) -> "DebertaConfig":
        return cls(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, mlp_dim=64, max_seq_len=32, num_buckets=8)


def spec(cfg: DebertaConfig) -> params.Tree:
    """The tables of tokens (V, D) and distances (R, D), BERT's layers, and the head."""
    init, D = normal(cfg.init_std), cfg.embed_dim
    tree = {
        "embed": linear.embedding_spec(cfg.vocab_size, D, init=init),
        "embed_norm": norm.layer_spec(D),
        "distances": linear.embedding_spec(2 * cfg.num_buckets, D, init=init, axis=None),
        "distance_norm": norm.layer_spec(D),
        "layers": params.stack(bert.block_spec(cfg), cfg.num_layers),
    }
    return tree | ({"mlm": bert.masked_lm_spec(cfg, D)} if cfg.head == "masked_lm" else {})


def buckets(num_buckets: int, max_seq_len: int) -> np.ndarray:
    """The bucket, -num_buckets .. num_buckets, of each distance 1 - max_seq_len .. max_seq_len - 1.

    A distance up to num_buckets / 2 has a bucket of its own. The logarithm is computed in float32,
    as in transformers' make_log_bucket_position: a different rounding may select the next bucket.
    """
    distance = np.arange(1 - max_seq_len, max_seq_len)
    middle = num_buckets // 2
    far = np.maximum(np.abs(distance), middle - 1).astype(np.float32) / np.float32(middle)
    widest = np.log(np.float32((max_seq_len - 1) / middle))
    logarithmic = np.ceil(np.log(far) / widest * np.float32(middle - 1)) + middle
    return np.where(np.abs(distance) <= middle, distance, np.sign(distance) * logarithmic).astype(np.int32)


def rows(cfg: DebertaConfig, positions: jax.Array) -> jax.Array:
    """Returns (B, T, T) int32: the distance table's row for each query and key."""
    furthest = cfg.max_seq_len - 1
    distance = jnp.clip(positions[:, :, None] - positions[:, None, :], -furthest, furthest)
    bucket = jnp.asarray(buckets(cfg.num_buckets, cfg.max_seq_len))[distance + furthest]
    return jnp.clip(bucket + cfg.num_buckets, 0, 2 * cfg.num_buckets - 1)


def distance_bias(q, k, distance_q, distance_k, rows_BTS):
    """Content-to-distance plus distance-to-content logits, (B, H, T, S) float32.

    q, k (B, T, H, h); distance_q, distance_k (R, H, h): projections of the distance table.
    """
    to_rows = functools.partial(jnp.einsum, "bthd,rhd->bhtr", preferred_element_type=jnp.float32)
    # Products with all R rows, then a gather per pair: the (T, S, h) array of keys is never made.
    from_query = jnp.take_along_axis(to_rows(q, distance_k), rows_BTS[:, None], axis=-1)
    from_key = jnp.take_along_axis(to_rows(k, distance_q), rows_BTS.swapaxes(1, 2)[:, None], axis=-1)
    return from_query + from_key.swapaxes(2, 3)


def enter(cfg: DebertaConfig, p, batch, *, rng, train: bool, cache) -> Entry:
    """Embeds a batch: tokens, positions and segment_ids, (B, T) each."""
    embed_rng, _, layer_rngs = bert.split(cfg, rng)
    here, _, _ = where(batch, None)
    rows_BTS = rows(cfg, here.positions)
    distances = norm.layer(p["distance_norm"], p["distances"]["table"], eps=cfg.norm_eps)[None]
    x_BTD = norm.layer(p["embed_norm"], linear.embed(p["embed"], batch["tokens"]), eps=cfg.norm_eps)
    x_BTD = constrain(dropout(cfg.dropout, x_BTD, embed_rng), "batch", "seq", "embed")
    return Entry(x_BTD, layer_rngs, (here, rows_BTS), (distances,))


def block(cfg: DebertaConfig, p, x_BTD, rng, here, rows_BTS, distances, *, train: bool):
    """One layer, (B, T, D) -> (B, T, D).

    rows_BTS: as from `rows`. distances: the normed distance table, (1, R, D).
    """
    scale = 1 / math.sqrt(3 * cfg.head_dim)  # a logit sums three terms, each of variance head_dim

    def attend(p, x_BTD):
        q, k, v = attention.qkv(p, x_BTD)
        distance_q, distance_k, _ = attention.qkv(p, distances)
        bias = distance_bias(q, k, distance_q[0], distance_k[0], rows_BTS)
        bias = scale * constrain(bias, "batch", "heads", "seq", None)
        h = attention.attend(q, k, v, here, here, causal=False, scale=scale, bias=bias)
        return attention.project_out(p, h)

    return bert.layer(cfg, p, x_BTD, rng, attend)


def leave(cfg: DebertaConfig, p, entry: Entry, x_BTD, ys, batch, *, train: bool) -> Out:
    """Logits (B, T, V) float32; without a head, {"hidden" (B, T, D)}."""
    if cfg.head == "none":
        return Out({"hidden": x_BTD})
    head = bert.masked_lm(cfg, p, x_BTD)
    return Out(head.logits(), head=head)


PRESETS = {
    "deberta-v3-small": DebertaConfig(num_layers=6),
    "deberta-v3-base": DebertaConfig(),
    "deberta-v3-large": DebertaConfig(num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
}
