"""The gated delta rule and its short convolution, for rows of several documents (arXiv:2412.06464).

A head's state S maps keys to values. Each token lets it decay, and replaces the value of its key: S
becomes a S + b k (v - a S^T k)^T. The state restarts at a document's first token, and padding
leaves it unchanged.

Shapes: B batch, T tokens, K key heads, G value heads per key head, k key dimensions, v value
dimensions, W taps of the convolution, N chunks, c tokens of a chunk.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.nn.attention.visibility import Where

# Tokens that are computed at once, as in the published models' code.
CHUNK = 64
# Of squared lengths, as in the published models' code.
EPS = 1e-6


class Documents(NamedTuple):
    """The documents of a row, by token.

    real: (B, T) bool, False for padding. number: (B, T) int32, how many documents have begun up to
    this token; 0 continues the document of a state.
    """

    real: jax.Array
    number: jax.Array


def documents(where: Where) -> Documents:
    """The documents of a row: each begins at position 0, or where the segment changes."""
    segments, real = where.segments, where.segments > 0
    last = jax.lax.cummax(jnp.where(real, jnp.arange(real.shape[1]), 0), axis=1)
    # A document may be continued after padding, so its segment is compared with the last real one.
    before = jnp.take_along_axis(segments, jnp.pad(last, ((0, 0), (1, 0)))[:, :-1], axis=1)
    begins = real & ((where.positions == 0) | ((before > 0) & (before != segments)))
    return Documents(real, jnp.cumsum(begins, axis=1, dtype=jnp.int32))


def short_convolution(
    x: jax.Array, kernel: jax.Array, docs: Documents, state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """silu of each channel's sum over the last W tokens of its document, and the state after it.

    x: (B, T, K, d). kernel: (K, d, W). state: (B, W - 1, K, d), the inputs before these. Without a
    state, no padding may lie inside a document.
    """
    (B, T), W = x.shape[:2], kernel.shape[-1]
    real = docs.real[:, :, None, None]
    past = jnp.zeros((B, W - 1, *x.shape[2:]), x.dtype) if state is None else state.astype(x.dtype)
    x = jnp.concatenate([past, jnp.where(real, x, 0)], axis=1)
    number = jnp.pad(docs.number, ((0, 0), (W - 1, 0)))
    if state is not None:
        # With padding first, the tokens of a prompt's next piece follow those of the state.
        order = jnp.argsort(jnp.pad(docs.real, ((0, 0), (W - 1, 0)), constant_values=True), axis=1, stable=True)
        x, number = jnp.take_along_axis(x, order[:, :, None, None], axis=1), jnp.take_along_axis(number, order, axis=1)
        ends = number[:, T:] == number[:, -1:]
        state = jnp.where(ends[:, :, None, None], x[:, T:], 0).astype(state.dtype)
    y, taps = jnp.zeros((), jnp.float32), kernel.astype(jnp.float32)
    for i in range(W):
        same = number[:, i : i + T] == number[:, W - 1 :]
        y += jnp.where(same[:, :, None, None], x[:, i : i + T].astype(jnp.float32), 0) * taps[..., i]
    if state is not None:
        places = jnp.maximum(jnp.argsort(order, axis=1)[:, W - 1 :] - (W - 1), 0)
        y = jnp.take_along_axis(y, places[:, :, None, None], axis=1)
    return jax.nn.silu(y).astype(x.dtype), state


def apply(
    q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, rate: jax.Array, docs: Documents, state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns (outputs (B, T, K, G, v), the state after the last token), float32.

    q, k: (B, T, K, k), normalised here. v: (B, T, K, G, v). log_decay (at most 0) and rate (0 to
    1): (B, T, K, G). state: (B, K, G, k, v).
    """
    # A state sums over a whole text, so it and all products with it are float32.
    q, k, v, log_decay, rate, state = (x.astype(jnp.float32) for x in (q, k, v, log_decay, rate, state))
    q, k = (x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + EPS) for x in (q, k))
    real = docs.real[:, :, None, None]
    log_decay, rate = jnp.where(real, log_decay, 0), jnp.where(real, rate, 0)
    with jax.default_matmul_precision("highest"):
        run = token if q.shape[1] == 1 else chunked
        return run(q * q.shape[-1] ** -0.5, k, v, log_decay, rate, docs.number, state)


def token(q, k, v, log_decay, rate, number, state) -> tuple[jax.Array, jax.Array]:
    """`apply` for one token, by the definition."""
    q, k, v, log_decay, rate, begins = (x[:, 0] for x in (q, k, v, log_decay, rate, number))
    kept = jnp.where(begins[:, None, None] > 0, 0, jnp.exp(log_decay))
    state = state * kept[..., None, None]
    change = (v - jnp.einsum("bkd,bkgdv->bkgv", k, state)) * rate[..., None]
    state += jnp.einsum("bkd,bkgv->bkgdv", k, change)
    return jnp.einsum("bkd,bkgdv->bkgv", q, state)[:, None], state


def chunked(q, k, v, log_decay, rate, number, state, size: int = CHUNK) -> tuple[jax.Array, jax.Array]:
    """`apply` in chunks: inside a chunk by a triangular system, between chunks by the state.

    The decay between two tokens of a document is the difference of their sums of decays.
    """
    T, c = q.shape[1], min(size, q.shape[1])
    spare = -T % c
    number = jnp.pad(number, ((0, 0), (0, spare)), mode="edge").reshape(len(q), -1, c)
    q, k, v = (jnp.moveaxis(_cut(x, spare, c), 2, -2) for x in (q, k, v))
    log_decay, rate = (jnp.moveaxis(_cut(x, spare, c), 2, -1) for x in (log_decay, rate))
    before = jnp.pad(number[:, :-1, -1], ((0, 0), (1, 0)))[..., None]
    seen = (number[..., :, None] == number[..., None, :]) & jnp.tri(c, dtype=bool)
    first, last = (_of_heads(number == other) for other in (before, number[..., -1:]))

    # Sums over a token's own document in the chunk: no rounding depends on another document.
    total = jnp.einsum("bnij,bnkgj->bnkgi", seen.astype(jnp.float32), log_decay)
    between = jnp.exp(jnp.where(_of_heads(seen), total[..., :, None] - total[..., None, :], -jnp.inf))
    reads, writes = jnp.exp(total) * first, jnp.exp(jnp.where(last, total[..., -1:] - total, -jnp.inf))
    kept = reads[..., -1, None, None]

    system = jnp.einsum("bnkid,bnkjd->bnkij", k, k)[:, :, :, None] * between * rate[..., None]
    wanted = jnp.concatenate([v * rate[..., None], k[:, :, :, None] * (rate * reads)[..., None]], axis=-1)
    options = {"left_side": True, "lower": True, "unit_diagonal": True}
    change, known = jnp.split(jax.lax.linalg.triangular_solve(system, wanted, **options), [v.shape[-1]], axis=-1)
    weights = jnp.einsum("bnkid,bnkjd->bnkij", q, k)[:, :, :, None] * between

    def one(state, chunk):
        q, k, change, known, weights, reads, writes, kept = chunk
        change -= known @ state
        out = jnp.einsum("bkcd,bkgdv->bkgcv", q, state) * reads[..., None] + weights @ change
        return state * kept + jnp.einsum("bkcd,bkgcv->bkgdv", k, change * writes[..., None]), out

    chunks = jax.tree.map(lambda x: x.swapaxes(0, 1), (q, k, change, known, weights, reads, writes, kept))
    state, out = jax.lax.scan(one, state, chunks)
    out = jnp.moveaxis(out, (0, 4), (1, 2))  # (N, B, K, G, c, v) -> (B, N, c, K, G, v)
    return out.reshape(len(q), -1, *out.shape[3:])[:, :T], state


def _cut(x: jax.Array, spare: int, c: int) -> jax.Array:
    """(B, T, ...) -> (B, N, c, ...), with `spare` zeros at the end."""
    x = jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(len(x), -1, c, *x.shape[2:])


def _of_heads(x: jax.Array) -> jax.Array:
    """(B, N, ...) -> (B, N, 1, 1, ...)."""
    return x[:, :, None, None]
