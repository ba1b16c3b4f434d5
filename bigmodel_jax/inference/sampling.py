"""Samples the next token of each row from its logits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import SampleConfig

# Logits divided by less than this exceed float32. A temperature below it means the likeliest token.
COLDEST = 1e-6
# Not every device has smaller float32 numbers. With this share, only the likeliest token stays.
LEAST_SHARE = 1e-7


def sample(logits: jax.Array, keys: jax.Array, cfg: SampleConfig) -> jax.Array:
    """Next tokens (B,) from logits (B, V): temperature, then top k, then top p.

    keys: (B,), one per row, so that a row's draw does not depend on other rows. Top p keeps the
    smallest set of tokens with that probability (nucleus sampling: Holtzman et al.,
    arXiv:1904.09751).
    """
    if cfg.temperature < COLDEST:
        return likeliest(logits)
    logits = logits.astype(jnp.float32) / cfg.temperature
    if 0 < cfg.top_k < logits.shape[-1]:
        # The k-th largest logit of each row.
        least = jax.lax.top_k(logits, cfg.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if cfg.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        # A token stays if the likelier ones together have less than top_p, so the likeliest always
        # stays.
        keep = jnp.cumsum(probs, axis=-1) - probs < max(cfg.top_p, LEAST_SHARE)
        least = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


class Settings(NamedTuple):
    """Sampling settings per row, if requests differ. Every field is (B,).

    temperature, top_k, top_p: as in `SampleConfig`. ends: whether a stop token ends the text. tops:
    whether log probabilities of the token and of the likeliest ones are wanted.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    ends: Any
    tops: Any

    @classmethod
    def of(cls, sample: SampleConfig, *, ends: bool = True, tops: bool = False) -> "Settings":
        """Converts a config's sampling settings to those of one row, as scalars."""
        temperature = sample.temperature if sample.temperature >= COLDEST else 0.0
        numbers = (np.float32(temperature), np.int32(sample.top_k), np.float32(max(sample.top_p, LEAST_SHARE)))
        return cls(*numbers, np.bool_(ends), np.bool_(tops))


def sample_each(logits: jax.Array, keys: jax.Array, settings: Settings) -> jax.Array:
    """Like `sample`, with settings per row. Computations that no row needs are skipped."""
    # A temperature of 0 means greedy, so these rows are not sampled.
    hot = settings.temperature > 0
    narrow = hot & ((settings.top_k > 0) | (settings.top_p < 1))

    def drawn(logits: jax.Array) -> jax.Array:
        scaled = logits.astype(jnp.float32) / jnp.where(hot, settings.temperature, 1)[:, None]
        scaled = jax.lax.cond(narrow.any(), lambda x: _narrowed(x, settings), lambda x: x, scaled)
        tokens = jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
        return jnp.where(hot, tokens, likeliest(logits))

    return jax.lax.cond(hot.any(), drawn, likeliest, logits)


def _narrowed(logits: jax.Array, settings: Settings) -> jax.Array:
    """The logits (B, V) with -inf outside the top k and the nucleus."""
    most = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    # The rank of the last token that stays; top_k = 0 keeps all.
    last = jnp.where(settings.top_k > 0, jnp.minimum(settings.top_k, most), most) - 1
    least = jnp.take_along_axis(ordered, last[:, None], axis=-1)
    logits, ordered = (jnp.where(x < least, -jnp.inf, x) for x in (logits, ordered))
    probs = jax.nn.softmax(ordered, axis=-1)
    top_p = settings.top_p[:, None]
    keep = (jnp.cumsum(probs, axis=-1) - probs < top_p) | (top_p >= 1)
    least = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)


def allowed_only(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """The logits (B, V) with -inf for tokens that are not allowed.

    allowed: (B, W) uint32. Bit n of word w stands for token 32 w + n.
    """
    tokens = jnp.arange(logits.shape[-1])
    # Tokens beyond the mask count as not allowed.
    bits = jnp.take(allowed, tokens // 32, axis=1, mode="fill", fill_value=0) >> (tokens % 32).astype(jnp.uint32)
    return jnp.where(bits & 1, logits, -jnp.inf)


def likeliest(logits: jax.Array) -> jax.Array:
    """The index (B,) int32 of each row's first maximum. XLA's argmax is five times slower on
    CPU."""
    num = logits.shape[-1]
    hit = logits == logits.max(-1, keepdims=True)
    return jnp.where(hit, jnp.arange(num, dtype=jnp.int32), num - 1).min(-1)
