"""Softmax cross-entropy of logits, in float32 because it sums over the whole vocabulary."""

import chex
import jax
import jax.numpy as jnp

from bigmodel_jax.nn import cpu

# A logit that a softmax leaves out. It is finite, so that the difference of two such logits is 0
# and not NaN, and a row of such logits has a finite loss.
MASKED = -1e30


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (-log p(target), log Z) in nats, each (...,); logits (..., V), targets (...) int."""
    chex.assert_shape(targets, logits.shape[:-1])
    logits = logits.astype(jnp.float32)
    if cpu.active():
        return cpu.softmax_cross_entropy(logits, targets)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - target_logit, log_z
