"""The entropy of attention weights, for a few queries of each row: how widely attention looks."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.nn.attention.visibility import Rule, Where, capped, reach, visible
from bigmodel_jax.nn.cross_entropy import MASKED

QUERIES = 16  # queries per row, evenly spaced; all of them would cost a second attention


def entropy(
    rule: Rule,
    q: jax.Array,
    k: jax.Array,
    q_where: Where,
    k_where: Where,
    local: jax.Array | None = None,
    sinks: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> Mean:
    """The mean entropy in nats over rows, heads and QUERIES queries, without padding.

    It is 0 if each query attends to one key, and log S if each query attends to S keys equally. The
    arguments are those of `attention.attend`: q (B, T, H, h), already scaled, k (B, S, K, h).
    """
    (B, T, H, h), (S, K) = q.shape, k.shape[1:3]
    num = min(QUERIES, T)
    at = (np.arange(num) + 1) * T // num - 1
    q, q_where = q[:, at], Where(*(x[:, at] for x in q_where))
    grouped = (K, H // K)
    logits = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, num, *grouped, h), k, preferred_element_type=jnp.float32)
    logits = capped(logits, rule.softcap)
    if bias is not None:
        logits += bias[:, :, at].reshape(bias.shape[0], *grouped, num, S).astype(jnp.float32)
    logits = jnp.where(visible(q_where, k_where, rule.causal, reach(rule, local))[:, None, None], logits, MASKED)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks.reshape(*grouped, 1, 1).astype(jnp.float32), (B, *grouped, num, 1))
        logits = jnp.concatenate([logits, sink], axis=-1)
    logs = jax.nn.log_softmax(logits, axis=-1)
    nats = -jnp.sum(jnp.exp(logs) * logs, axis=-1).mean((1, 2))  # over heads: (B, T)
    held = jnp.broadcast_to(q_where.segments > 0, nats.shape).astype(jnp.float32)
    return Mean(jnp.sum(nats * held), jnp.sum(held))
