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
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
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
