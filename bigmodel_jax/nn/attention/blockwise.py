"""Blockwise attention: a running softmax, whose memory is linear in the length and not quadratic.

Milakov & Gimelshein, arXiv:1805.02867; Rabe & Staats, arXiv:2112.05682. The gradient needs only the
outputs and the logarithms of the sums (Dao, arXiv:2307.08691). A pair of blocks in which no query
sees a key is skipped.

Shapes: B batch, T query, S key, H heads, K kv heads, h head_dim, w value dimensions; N blocks of c
queries, M blocks of keys; R = H / K * c rows: a block's queries of all heads that share a kv head.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.nn.attention.visibility import KEPT, Rule, Where, capped, visible

CHUNK = 512  # queries or keys of a block
LANES = 128  # lanes of a TPU's vector unit; a kernel's blocks are multiples of it
# The initial running maximum. It is finite, so that the difference of two of them is 0 and not NaN.
LOWEST = -1e30


class Queries(NamedTuple):
    """The queries in blocks, as a pass over keys needs them: q (N, B, K, R, h), where (N, B, c)."""

    q: jax.Array
    where: Where


class Running(NamedTuple):
    """The running softmax of each row, all float32.

    acc: (N, B, K, R, w), the weighted sum of values so far. top: (N, B, K, R), the largest logit.
    total: (N, B, K, R), the sum of exponentials relative to `top`.
    """

    acc: jax.Array
    top: jax.Array
    total: jax.Array


class Keys(NamedTuple):
    """k (B, S, K, h), v (B, S, K, w) and where they stand. These arrays travel around a ring."""

    k: jax.Array
    v: jax.Array
    where: Where


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(rule: Rule, q, k, v, sinks, q_where: Where, k_where: Where, window) -> jax.Array:
    """Returns (B, T, H, w). A query that sees no key gives 0.

    q: (B, T, H, h), scaled. k: (B, S, K, h). v: (B, S, K, w). sinks: (H,) or None. window: ()
    int32.
    """
    return _attend_forward(rule, q, k, v, sinks, q_where, k_where, window)[0]


def _attend_forward(rule, q, k, v, sinks, q_where, k_where, window):
    keys = Keys(k, v, k_where)
    queries, seen = bound(cut_queries(q, q_where, k.shape[2]), keys)
    running = accumulate(rule, start(queries, sinks, v.shape[-1]), queries, seen, window)
    out, log_sum = finish(running, q.shape, v.dtype)
    return out, (q, keys, sinks, q_where, window, out, log_sum)


def _attend_backward(rule, saved, d_out):
    q, keys, sinks, q_where, window, out, log_sum = saved
    queries = cut_queries(q, q_where, keys.k.shape[2])
    given = incoming(d_out, out, log_sum, sinks, q_where)
    dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (keys.k, keys.v))
    dq, dk, dv = gradients(rule, jnp.zeros(queries.q.shape, jnp.float32), queries, given, keys, dk, dv, window)
    dq = join_queries(dq, q.shape).astype(q.dtype)
    return dq, dk.astype(keys.k.dtype), dv.astype(keys.v.dtype), given.d_sinks, None, None, None


attend.defvjp(_attend_forward, _attend_backward)


# ------------------------------------------------------------------------------------------ forward


def bound(queries: Queries, keys: Keys) -> tuple[Queries, Keys]:
    """The same arrays after an optimization barrier.

    JAX moves values that do not depend on the layer out of a loop over layers, and keeps them.
    Without the barrier these are the masks of all pairs of blocks, whose size is quadratic in the
    length.
    """
    return jax.lax.optimization_barrier((queries, keys))


def start(queries: Queries, sinks: jax.Array | None, v_dim: int) -> Running:
    """The state before the first key.

    A sink is a key without a value: its logit counts in the sum and adds nothing to the weighted
    sum.
    """
    N, B, K, R, _ = queries.q.shape
    zeros = jnp.zeros((N, B, K, R), jnp.float32)
    acc = jnp.zeros((N, B, K, R, v_dim), jnp.float32)
    if sinks is None:
        return Running(acc, zeros + LOWEST, zeros)
    return Running(acc, zeros + _of_rows(sinks, K, R), zeros + 1.0)


def accumulate(rule: Rule, running: Running, queries: Queries, keys: Keys, window: jax.Array) -> Running:
    """Updates `running` with these keys."""
    blocks = cut_keys(keys)

    def one(of_queries):
        running, (q, q_where) = of_queries

        def step(running, block):
            mask = visible(q_where, block.where, rule.causal, window)
            update = functools.partial(_update, rule, q, block, mask)
            # A pair of blocks in which no query sees a key is skipped.
            return jax.lax.cond(mask.any(), update, lambda running: running, running), None

        return jax.lax.scan(step, running, blocks)[0]

    return jax.lax.map(one, (running, queries))


def _update(rule, q, block, mask, running):
    logits, mask = _logits(rule, q, block.k, mask)
    top = jnp.maximum(running.top, jnp.where(mask, logits, LOWEST).max(-1))
    probs, shrink = jnp.where(mask, jnp.exp(logits - top[..., None]), 0.0), jnp.exp(running.top - top)
    # `shrink` rescales the earlier sums to the new maximum.
    new = jnp.einsum("bkrs,bskw->bkrw", probs.astype(block.v.dtype), block.v, preferred_element_type=jnp.float32)
    return Running(running.acc * shrink[..., None] + new, top, running.total * shrink + probs.sum(-1))


def _logits(rule, q, k, mask):
    """Capped logits (B, K, R, s) float32, and the mask (B, c, s) for all heads, (B, 1, R, s)."""
    logits = jnp.einsum("bkrh,bskh->bkrs", q, k, preferred_element_type=jnp.float32)
    return capped(logits, rule.softcap), jnp.tile(mask, (1, q.shape[2] // mask.shape[1], 1))[:, None]


def finish(running: Running, shape: tuple[int, ...], dtype) -> tuple[jax.Array, jax.Array]:
    """The outputs (B, T, H, w), and the logarithm of each row's sum (N, B, K, R).

    shape: the queries' shape.
    """
    # A query that sees no key has the sum 0. Its output is 0 and not NaN.
    total = jnp.where(running.total == 0.0, 1.0, running.total)
    out = join_queries(running.acc / total[..., None], shape).astype(dtype)
    return checkpoint_name(out, KEPT), checkpoint_name(running.top + jnp.log(total), KEPT)


# ----------------------------------------------------------------------------------------- backward


class Incoming(NamedTuple):
    """The inputs of the backward pass over keys, besides the queries.

    d_out: (N, B, K, R, w). log_sum: (N, B, K, R), the logarithms of the sums. delta: (N, B, K, R),
    the sum over keys of p dp, which the outputs give (arXiv:2307.08691, section 3.1). d_sinks: the
    sinks' gradient.
    """

    d_out: jax.Array
    log_sum: jax.Array
    delta: jax.Array
    d_sinks: jax.Array | None


def incoming(d_out, out, log_sum, sinks, q_where: Where) -> Incoming:
    """The `Incoming` of d_out and out (B, T, H, w), log_sum (N, B, K, R) and sinks (H,)."""
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
    K = log_sum.shape[2]
    delta, d_out = (cut_queries(x, q_where, K).q for x in (delta, d_out))
    delta = delta[..., 0]
    d_sinks = None
    if sinks is not None:
        share = -jnp.exp(_of_rows(sinks, *log_sum.shape[2:]) - log_sum) * delta
        d_sinks = share.reshape(*share.shape[:2], len(sinks), -1).sum((0, 1, 3)).astype(sinks.dtype)
    return Incoming(d_out, log_sum, delta, d_sinks)


def gradients(rule: Rule, dq, queries: Queries, given: Incoming, keys: Keys, dk, dv, window):
    """Adds these keys' gradients to dq (N, B, K, R, h), dk (B, S, K, h), dv (B, S, K, w),
    float32.
    """
    blocks, S = cut_keys(keys), dk.shape[1]
    size = blocks.k.shape[2]

    def one(dkv, of_queries):
        dq, (q, q_where), d_out, log_sum, delta = of_queries

        def step(dq, of_keys):
            block, dk, dv = of_keys
            mask = visible(q_where, block.where, rule.causal, window)
            pair = functools.partial(_pair, rule, q, d_out, log_sum, delta, block, mask)
            nothing = functools.partial(jax.tree.map, jnp.zeros_like)
            added = jax.lax.cond(mask.any(), lambda _: pair(), nothing, (dq, dk, dv))
            dq, dk, dv = jax.tree.map(jnp.add, (dq, dk, dv), added)
            return dq, (dk, dv)

        dq, dkv = jax.lax.scan(step, dq, (blocks, *dkv))
        return dkv, dq

    of_queries = (dq, queries, given.d_out, given.log_sum, given.delta)
    dkv, dq = jax.lax.scan(one, (_blocks(dk, size), _blocks(dv, size)), of_queries)
    return dq, *(_joined(x, S) for x in dkv)


def _pair(rule, q, d_out, log_sum, delta, block, mask):
    """Returns (dq, dk, dv) float32 of one block of queries and one of keys."""
    logits, mask = _logits(rule, q, block.k, mask)
    probs = jnp.where(mask, jnp.exp(logits - log_sum[..., None]), 0.0)
    float32 = {"preferred_element_type": jnp.float32}
    dv = jnp.einsum("bkrs,bkrw->bskw", probs.astype(d_out.dtype), d_out, **float32)
    d_logits = probs * (jnp.einsum("bkrw,bskw->bkrs", d_out, block.v, **float32) - delta[..., None])
    # The derivative of c tanh(l / c) by l is 1 - (capped / c)^2.
    if rule.softcap:
        d_logits *= 1.0 - jnp.square(logits / rule.softcap)
    # Both products read d_logits in q's dtype, for the matrix units, and sum in float32.
    d_logits = d_logits.astype(q.dtype)
    dq = jnp.einsum("bkrs,bskh->bkrh", d_logits, block.k, **float32)
    return dq, jnp.einsum("bkrs,bkrh->bskh", d_logits, q, **float32), dv


# ------------------------------------------------------------------------------------------- blocks


def _block_size(length: int) -> tuple[int, int]:
    """The length of a block, and of the padding after the last one."""
    size = min(CHUNK, length)
    return size, -length % size


def _blocks(x, size):
    """Cuts (B, length, ...) into blocks (N, B, size, ...), padded with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _joined(x, length):
    """The inverse of `_blocks`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def cut_queries(q: jax.Array, where: Where, num_kv_heads: int) -> Queries:
    """q (B, T, H, h) in blocks, padded at the end."""
    B, T, H, h = q.shape
    K, (size, _) = num_kv_heads, _block_size(T)
    rows = _blocks(q, size).reshape(-1, B, size, K, H // K, h).transpose(0, 1, 3, 4, 2, 5)
    # Padding queries have a segment that no key has, so that they see nothing.
    return Queries(rows.reshape(-1, B, K, H // K * size, h), _cut_where(where, size, padding=-1))


def join_queries(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Joins the blocks (N, B, K, R, w) to (B, T, H, w). `shape` begins with (B, T, H)."""
    (N, B, K, _, w), (_, T, H) = rows.shape, shape[:3]
    return _joined(rows.reshape(N, B, K, H // K, -1, w).transpose(0, 1, 4, 2, 3, 5).reshape(N, B, -1, H, w), T)


def cut_keys(keys: Keys) -> Keys:
    """Keys in blocks: k (M, B, size, K, h), v (M, B, size, K, w), padded at the end."""
    size, _ = _block_size(keys.k.shape[1])
    return Keys(_blocks(keys.k, size), _blocks(keys.v, size), _cut_where(keys.where, size, padding=-2))


def _cut_where(where: Where, size: int, padding: int) -> Where:
    missing = -where.segments.shape[1] % size
    segments = jnp.pad(where.segments, ((0, 0), (0, missing)), constant_values=np.int32(padding))
    return Where(_blocks(where.positions, size), _blocks(segments, size))


def _of_rows(per_head, K, R):
    """Maps (H,) -> (K, R) float32: each head's value, repeated for its queries."""
    return jnp.repeat(per_head.reshape(K, -1).astype(jnp.float32), R * K // len(per_head), axis=1)
