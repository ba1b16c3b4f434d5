"""What encoder-decoders share: attention to the encoder's output, its decode cache, and which sizes fit each other.

Batch: encoder_tokens (B, S) and encoder_segment_ids (B, S), default one document a row, 0 being padding; the decoder's
tokens (shifted right: they begin with decoder_start_token_id), positions and segment_ids (B, T). In packed rows segment n
of the decoder sees segment n of the encoder.

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
    """own: the decoder's own keys and values, as in decoder-only models; memory {"k", "v"} (L, B, S, H, h): the
    encoder's, made by the first call, the one whose batch has encoder_tokens; memory_where: where they stand."""

    own: decoder.Cache
    memory: Any
    memory_where: Where


def make_cache(cfg, batch_size: int, length: int, dtype: Any) -> Cache:
    """The declaration of a cache for `length` decoder tokens and `length` encoder tokens a row."""
    shape = (cfg.num_decoder_layers, batch_size, length, cfg.num_heads, cfg.head_dim)
    own, memory = (
        dict.fromkeys("kv", decoder.declared(shape, ("layers", "batch", dim, "heads", "head_dim"), dtype))
        for dim in ("seq", None)
    )
    places = decoder.declared((batch_size, length), ("batch", None), jnp.int32)
    return Cache(decoder.ring(own, batch_size, length), memory, Where(places, places))


def encoder_where(batch: dict) -> Where | None:
    """Where the encoder's tokens stand; positions count from 0 in each segment. None in a call that only decodes."""
    if "encoder_tokens" not in batch:
        return None
    segments = batch.get("encoder_segment_ids")
    if segments is None:
        segments = jnp.ones(batch["encoder_tokens"].shape, jnp.int32)
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    first = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    begins = jax.lax.cummax(jnp.where(first, column, 0), axis=1)
    return Where(column - begins, segments)


def check_batch(batch: dict, cache: Cache | None) -> None:
    """Raises ValueError where there is nothing to attend to."""
    if "encoder_tokens" not in batch and cache is None:
        raise ValueError(
            f"batch has {', '.join(batch)}, but no encoder_tokens: an encoder-decoder needs data of pairs, "
            "such as SpanCorruptionData"
        )


def attend_memory(p: dict, x_BTD, memory_BSD, cached, q_where: Where, memory_where: Where, **options):
    """Attention of the decoder to the encoder's output: (B, T, D), and the keys and values (B, S, H, h) it used.

    cached: keys and values of an earlier call, used instead of `memory_BSD`.
    """
    q = project(p, "q", x_BTD)
    kv = cached or {name: project(p, name, memory_BSD) for name in ("k", "v")}
    h = attention.attend(q, kv["k"], kv["v"], q_where, memory_where, causal=False, **options)
    return attention.project_out(p, h), kv


def project(p: dict, name: str, x_BTD: jax.Array) -> jax.Array:
    """Queries, keys or values (B, T, H, h), with their bias where there is one."""
    y = linear.project(x_BTD, p[name])
    return y + p[f"{name}_bias"] if f"{name}_bias" in p else y
