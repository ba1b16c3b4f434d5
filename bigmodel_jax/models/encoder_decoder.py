"""What encoder-decoders share: attention to the encoder's output, its cache, and checks of sizes.

A batch holds encoder_tokens (B, S), encoder_segment_ids (B, S), and the decoder's tokens, positions
and segment_ids (B, T). Segment id 0 marks padding. Without segment ids, a row is one document. The
decoder's tokens are shifted right: they begin with decoder_start_token_id. In packed rows, segment
n of the decoder attends to segment n of the encoder.

Shapes: B batch, T decoder tokens, S encoder tokens, D embed, H heads, h head_dim, L decoder layers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.models import decoder
from bigmodel_jax.models.sizes import AtMost, Cut
from bigmodel_jax.nn import linear
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.attention.attention import Where

SIZES = (
    Cut("num_heads", "heads"),
    Cut("mlp_dim", "mlp"),
    Cut("vocab_size", "vocab"),
    AtMost("decoder_start_token_id", "vocab_size", below=True),
    AtMost("eos_token_id", "vocab_size", below=True),
)


class Cache(NamedTuple):
    """The decode cache of an encoder-decoder.

    own: the decoder's keys and values, as in decoder-only models. memory: {"k", "v"}, each (L, B,
    S, H, h), made of the encoder's output by the first call, whose batch has encoder_tokens.
    memory_where: where the encoder's tokens stand.
    """

    own: decoder.Cache
    memory: Any
    memory_where: Where


def make_cache(cfg, batch_size: int, length: int, dtype: Any) -> Cache:
    """The declaration of a cache for `length` decoder and `length` encoder tokens per row."""
    shape = (cfg.num_decoder_layers, batch_size, length, cfg.num_heads, cfg.head_dim)
    own, memory = (
        dict.fromkeys("kv", decoder.declared(shape, ("layers", "batch", dim, "heads", "head_dim"), dtype))
        for dim in ("seq", None)
    )
    places = decoder.declared((batch_size, length), ("batch", None), jnp.int32)
    return Cache(decoder.ring(own, batch_size, length), memory, Where(places, places))


def encoder_where(batch: dict) -> Where | None:
    """Where the encoder's tokens stand, with positions that restart at 0 in each segment.

    None for a call without encoder_tokens, which only decodes.
    """
    if "encoder_tokens" not in batch:
        return None
    segments = batch.get("encoder_segment_ids")
    if segments is None:
        segments = jnp.ones(batch["encoder_tokens"].shape, jnp.int32)
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    first = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    # The running maximum carries the column where a segment begins to all its tokens.
    begins = jax.lax.cummax(jnp.where(first, column, 0), axis=1)
    return Where(column - begins, segments)


def check_batch(batch: dict, cache: Cache | None) -> None:
    """Raises ValueError if there is neither an encoder input nor a cache to attend to."""
    if "encoder_tokens" not in batch and cache is None:
        raise ValueError(
            f"batch has {', '.join(batch)}, but no encoder_tokens: an encoder-decoder needs data of pairs, "
            "such as SpanCorruptionData"
        )


def attend_memory(p: dict, x_BTD, memory_BSD, cached, q_where: Where, memory_where: Where, **options):
    """Attention of the decoder to the encoder's output.

    Returns (B, T, D), and the keys and values (B, S, H, h) that were used. cached: keys and values
    of an earlier call, used instead of `memory_BSD`.
    """
    q = project(p, "q", x_BTD)
    kv = cached or {name: project(p, name, memory_BSD) for name in ("k", "v")}
    h = attention.attend(q, kv["k"], kv["v"], q_where, memory_where, causal=False, **options)
    return attention.project_out(p, h), kv


def project(p: dict, name: str, x_BTD: jax.Array) -> jax.Array:
    """Queries, keys or values (B, T, H, h) of x (B, T, D), with their bias if `p` has one."""
    y = linear.project(x_BTD, p[name])
    return y + p[f"{name}_bias"] if f"{name}_bias" in p else y
