"""The next token of each row, drawn from its logits."""

import jax
import jax.numpy as jnp

from bigmodel_jax.config import SampleConfig


def sample(logits: jax.Array, keys: jax.Array, cfg: SampleConfig) -> jax.Array:
    """Next tokens (B,) of logits (B, V): temperature, then the top k, then the smallest set with probability top_p.

    keys: (B,), one per row, so that no row's draw depends on the rows beside it.
    Nucleus sampling: Holtzman et al., arXiv:1904.09751.
    """
    if cfg.temperature == 0:
        return likeliest(logits)
    logits = logits.astype(jnp.float32) / cfg.temperature
    if 0 < cfg.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, cfg.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if cfg.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        # A token stays if the likelier ones together have not reached top_p; the likeliest always does.
        keep = jnp.cumsum(probs, axis=-1) - probs < cfg.top_p
        least = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def likeliest(logits: jax.Array) -> jax.Array:
    """The first of the largest of each row, (B,) int32, as `argmax`, which XLA's CPU backend computes five times slower."""
    num = logits.shape[-1]
    hit = logits == logits.max(-1, keepdims=True)
    return jnp.where(hit, jnp.arange(num, dtype=jnp.int32), num - 1).min(-1)
