"""T5 v1.0 and v1.1: an encoder-decoder with relative position biases (arXiv:1910.10683).

v1.0 has ReLU. Its embedding table is also the head, and the logits are multiplied by
embed_dim**-0.5. v1.1 has gated GELU and a separate head. Norms only scale, and nothing has a bias.
Attention's logits are not divided by sqrt(head_dim). The initial queries are smaller instead.
Dropout is where v1.0 has it, except on attention weights.

Shapes: B batch, T decoder tokens, S encoder tokens, D embed, H heads, h head_dim, F mlp, V vocab, L
layers.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative, ShareBelowOne
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder, encoder_decoder
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.compute import StackCompute
from bigmodel_jax.models.encoder_decoder import (
    attend_memory,
    check_batch,
    encoder_where,
    make_cache,
)
from bigmodel_jax.models.sizes import Multiple
from bigmodel_jax.nn import feedforward, linear, norm, stack
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.dropout import dropout
from bigmodel_jax.nn.head import Head
from bigmodel_jax.nn.taps import tap


@dataclasses.dataclass(frozen=True)
class T5Config(ModelConfig):
    """T5 (Raffel et al., arXiv:1910.10683); defaults: T5-small v1.0.

    The reference implementation is transformers' `T5ForConditionalGeneration`.
    """

    vocab_size: Count = 32_128  # tokens in the vocabulary
    num_layers: Depth = 6  # layers of the encoder
    num_decoder_layers: Depth = 6  # layers of the decoder
    embed_dim: Count = 512  # width of the residual stream
    num_heads: Count = 8  # attention heads of a layer
    head_dim: Count = 64  # dimensions of a head
    mlp_dim: Count = 2048  # hidden width of the feed-forward layer
    max_seq_len: Count = 512  # tokens in pretraining; positions are relative, so longer sequences work
    num_buckets: Count = 32  # buckets of distances: half hold one distance each, the others ever more
    max_distance: Count = 128  # all distances from this one on share a bucket
    gated: bool = False  # v1.1: gelu(x gate) * (x up) instead of relu(x up)
    tied_embeddings: bool = True  # v1.0: the head is the embedding, its logits times embed_dim**-0.5
    norm_eps: NonNegative = 1e-6  # added to the mean square in every RMSNorm
    init_factor: NonNegative = 1.0  # factor of all initial standard deviations
    dropout: ShareBelowOne = 0.0  # dropout rate in training
    decoder_start_token_id: CountOrZero = 0  # token that the decoder's input begins with
    eos_token_id: CountOrZero = 1  # token that ends a text
    compute: StackCompute = StackCompute()

    SIZES: ClassVar[tuple] = (*encoder_decoder.SIZES, Multiple("num_buckets", 4, "two sides, two halves"))

    def inputs(self):
        return {"encoder_tokens": None, "tokens": None}

    def no_mup(self, depth):
        return "multiplies its logits by a width itself (tied_embeddings)" if self.tied_embeddings else ""

    def make(self) -> Model:
        return Model(
            spec=spec(self),
            apply=functools.partial(apply, self),
            make_cache=functools.partial(make_cache, self),
            decoder_start=self.decoder_start_token_id,
        )

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"model.max_distance = {self.max_distance}; it must be above model.num_buckets / 2 = {self.num_buckets // 2}"
            )

    @classmethod
    def tiny(cls) -> "T5Config":
        return cls(
            vocab_size=64,
            num_layers=2,
            num_decoder_layers=2,
            embed_dim=32,
            num_heads=4,
            head_dim=8,
            mlp_dim=64,
            max_seq_len=32,
            num_buckets=8,
            max_distance=16,
        )


def attention_spec(cfg: T5Config) -> params.Tree:
    """q, k, v (D, H, h) and o (H, h, D). The initial queries are smaller by sqrt(h)."""
    D, H, h = cfg.embed_dim, cfg.num_heads, cfg.head_dim
    init, out_init = normal(cfg.init_factor * D**-0.5), normal(cfg.init_factor * (H * h) ** -0.5)
    tree = attention.spec(D, H, H, h, init=init, out_init=out_init)
    return tree | {"q": dataclasses.replace(tree["q"], init=normal(cfg.init_factor * (D * h) ** -0.5))}


def mlp_spec(cfg: T5Config) -> params.Tree:
    """up (D, F) and down (F, D); with `gated` also gate (D, F)."""
    D, F = cfg.embed_dim, cfg.mlp_dim
    init, out_init = normal(cfg.init_factor * D**-0.5), normal(cfg.init_factor * F**-0.5)
    if cfg.gated:
        return feedforward.swiglu_spec(D, F, init=init, out_init=out_init)
    return {
        "up": linear.linear_spec(D, F, init=init),
        "down": linear.linear_spec(F, D, axes=("mlp", "embed"), init=out_init),
    }


def block_spec(cfg: T5Config, cross: bool) -> params.Tree:
    """One layer: RMSNorm and attention, with `cross` also cross-attention, then RMSNorm and MLP."""
    tree = {"attn_norm": norm.rms_spec(cfg.embed_dim), "attn": attention_spec(cfg)}
    if cross:
        tree |= {"cross_norm": norm.rms_spec(cfg.embed_dim), "cross": attention_spec(cfg)}
    return tree | {"mlp_norm": norm.rms_spec(cfg.embed_dim), "mlp": mlp_spec(cfg)}


def stack_spec(cfg: T5Config, num_layers: int, cross: bool) -> params.Tree:
    """A stack: the table of position biases (buckets, H), stacked layers, and the last norm."""
    bias = Param((cfg.num_buckets, cfg.num_heads), (None, "heads"), normal(cfg.init_factor * cfg.embed_dim**-0.5))
    return {
        "relative_bias": bias,
        "layers": params.stack(block_spec(cfg, cross), num_layers),
        "norm": norm.rms_spec(cfg.embed_dim),
    }


def spec(cfg: T5Config) -> params.Tree:
    """The table (V, D), encoder and decoder, and without tied_embeddings a head (V, D)."""
    table = linear.embedding_spec(cfg.vocab_size, cfg.embed_dim, init=normal(cfg.init_factor))
    tree = {
        "embed": table,
        "encoder": stack_spec(cfg, cfg.num_layers, cross=False),
        "decoder": stack_spec(cfg, cfg.num_decoder_layers, cross=True),
    }
    return tree if cfg.tied_embeddings else tree | {"head": table}


def bucket_of_distance(num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance 0 .. max_distance, int32: exact at first, then logarithmic.

    Distances below half the buckets have one each. The logarithm is in float32, as in the published
    models: where it is a whole number, another precision may select the bucket below.
    """
    exact = num_buckets // 2
    distance = np.arange(max_distance + 1, dtype=np.float32)
    share = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    wide = exact + (share * np.float32(num_buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(wide, num_buckets - 1)).astype(np.int32)


def relative_bias(cfg: T5Config, table, q_slots, k_slots, *, bidirectional: bool) -> jax.Array:
    """The bias that every layer adds to its logits, (1 or B, H, T, S).

    table: (buckets, H). q_slots, k_slots: ([B,] T) and ([B,] S) int. A slot is a token's place in
    its row. Two slots of one segment differ by as much as their positions do, so one bias serves
    all rows. The columns of a decode cache form a ring and are in no order, so each row's positions
    serve as slots there.
    """
    distance = k_slots[..., None, :] - q_slots[..., :, None]
    if bidirectional:  # half of the buckets are for keys before the query, half for keys after it
        buckets = jnp.asarray(bucket_of_distance(cfg.num_buckets // 2, cfg.max_distance))
        bucket = buckets[jnp.minimum(jnp.abs(distance), cfg.max_distance)] + (distance > 0) * (cfg.num_buckets // 2)
    else:
        buckets = jnp.asarray(bucket_of_distance(cfg.num_buckets, cfg.max_distance))
        bucket = buckets[jnp.clip(-distance, 0, cfg.max_distance)]
    bias = jnp.moveaxis(jnp.take(table, bucket, axis=0), -1, -3)
    return bias if bias.ndim == 4 else bias[None]


def mlp(cfg: T5Config, p, x_BTD, rng):
    """Maps (B, T, D) -> (B, T, D): the feed-forward layer; rng: its dropout key or None."""
    if cfg.gated:
        hidden = jax.nn.gelu(tap("units", linear.project(x_BTD, p["gate"])), approximate=True) * linear.project(
            x_BTD, p["up"]
        )
        down = p["down"]
    else:
        hidden, down = jax.nn.relu(tap("units", linear.linear(p["up"], x_BTD))), p["down"]["kernel"]
    return tap("mlp", linear.project(dropout(cfg.dropout, constrain(hidden, "batch", "seq", "mlp"), rng), down))


def block(cfg: T5Config, p, x_BTD, caches, rng, q_where, k_where, index, bias, causal, memory_BSD, memory_where):
    """One layer of either stack: (x (B, T, D), (its keys and values, the memory's)).

    caches: (own, memory). They, and the second result, are None outside decoding.
    """
    rngs = [None] * 4 if rng is None else jax.random.split(rng, 4)
    own, cached = caches

    def add(x, y, rng):
        return constrain(x + dropout(cfg.dropout, y, rng), "batch", "seq", "embed")

    q, k, v = attention.qkv(p["attn"], norm.rms(p["attn_norm"], x_BTD, eps=cfg.norm_eps))
    k, v = decoder.update_cache(own, k, v, index)
    h = attention.attend(q, k, v, q_where, k_where, causal=causal, scale=1.0, bias=bias)
    x_BTD = add(x_BTD, attention.project_out(p["attn"], h), rngs[0])
    kv = None
    if "cross" in p:
        h = norm.rms(p["cross_norm"], x_BTD, eps=cfg.norm_eps)
        h, kv = attend_memory(p["cross"], h, memory_BSD, cached, q_where, memory_where, scale=1.0)
        x_BTD = add(x_BTD, h, rngs[1])
    h = mlp(cfg, p["mlp"], norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps), rngs[2])
    return add(x_BTD, h, rngs[3]), None if own is None else ({"k": k, "v": v}, kv)


def run(cfg: T5Config, p, table, tokens, rng, caches, *where):
    """One stack: tokens (B, T) -> (normed states (B, T, D), the layers' keys and values)."""
    num_layers = stack.num_layers(p["layers"])
    rngs = None if rng is None else jax.random.split(rng, num_layers + 2)
    first, last = (None, None) if rngs is None else (rngs[0], rngs[1])
    x_BTD = constrain(dropout(cfg.dropout, linear.embed(table, tokens), first), "batch", "seq", "embed")

    q_where, k_where, *fixed, memory_BSD, memory_where = where

    def body(layer, x, xs, q_where, k_where, *memory):
        return block(cfg, layer, x, *xs, q_where, k_where, *fixed, *memory)

    shared = (q_where, k_where, memory_BSD, memory_where)
    xs = (caches, None if rngs is None else rngs[2:])
    x_BTD, kv = stack.run(
        body, p["layers"], x_BTD, xs, shared=shared, remat=cfg.compute.remat, unroll=cfg.compute.unroll
    )
    return dropout(cfg.dropout, norm.rms(p["norm"], x_BTD, eps=cfg.norm_eps), last), kv


def encode(cfg: T5Config, p, tokens, where, rng=None) -> jax.Array:
    """Returns (B, S, D): the encoder's output for tokens (B, S)."""
    slots = jnp.arange(tokens.shape[1])
    bias = relative_bias(cfg, p["encoder"]["relative_bias"], slots, slots, bidirectional=True)
    return run(cfg, p["encoder"], p["embed"], tokens, rng, (None, None), where, where, 0, bias, False, None, None)[0]


def apply(cfg: T5Config, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, T, V) float32 of the decoder; encoder_decoder.py describes the batch.

    With a cache, the first call encodes. Later calls omit encoder_tokens.
    """
    check_batch(batch, cache)
    encoder_rng, decoder_rng = jax.random.split(rng) if train and rng is not None else (None, None)
    memory_where, memory = encoder_where(batch), None
    if memory_where is None:
        memory_where = cache.memory_where
    else:
        memory = encode(cfg, p, batch["encoder_tokens"], memory_where, encoder_rng)
    q_where, k_where, own = decoder.where(batch, cache and cache.own)
    slots = jnp.arange(q_where.positions.shape[1])
    q_slots, k_slots = (slots, slots) if own is None else (q_where.positions, k_where.positions)
    bias = relative_bias(cfg, p["decoder"]["relative_bias"], q_slots, k_slots, bidirectional=False)
    caches = (own and own.layers, cache.memory if memory is None else None)
    where = (q_where, k_where, own and own.index, bias, True, memory, memory_where)
    x_BTD, kv = run(cfg, p["decoder"], p["embed"], batch["tokens"], decoder_rng, caches, *where)
    x_BTD = x_BTD * cfg.embed_dim**-0.5 if cfg.tied_embeddings else x_BTD
    head = Head(x_BTD, p["embed" if cfg.tied_embeddings else "head"]["table"])
    if cache is not None:
        cache = cache._replace(own=own.advance(kv[0], len(slots)), memory=kv[1], memory_where=memory_where)
    return Out(head.logits(), cache=cache, head=head)


BASE = T5Config(num_layers=12, num_decoder_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072)
LARGE = T5Config(num_layers=24, num_decoder_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096)
V1_1 = T5Config(gated=True, tied_embeddings=False)
PRESETS = {
    "t5-small": T5Config(),
    "t5-base": BASE,
    "t5-large": LARGE,
    "t5-3b": dataclasses.replace(LARGE, num_heads=32, head_dim=128, mlp_dim=16_384),
    "t5-11b": dataclasses.replace(LARGE, num_heads=128, head_dim=128, mlp_dim=65_536),
    "t5-v1.1-small": dataclasses.replace(V1_1, num_layers=8, num_decoder_layers=8, num_heads=6, mlp_dim=1024),
    "t5-v1.1-base": dataclasses.replace(BASE, gated=True, tied_embeddings=False, mlp_dim=2048),
    "t5-v1.1-large": dataclasses.replace(LARGE, gated=True, tied_embeddings=False, mlp_dim=2816),
    "t5-v1.1-xl": dataclasses.replace(
        LARGE, gated=True, tied_embeddings=False, embed_dim=2048, num_heads=32, mlp_dim=5120
    ),
    "t5-v1.1-xxl": dataclasses.replace(
        LARGE, gated=True, tied_embeddings=False, embed_dim=4096, num_heads=64, mlp_dim=10_240
    ),
}
