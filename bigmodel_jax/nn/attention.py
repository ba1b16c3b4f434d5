"""Attention: one door, `attend`, over several implementations.

Shapes: B batch, T query, S key, D embed, H heads, K kv heads, G = H / K query heads per kv head, h head_dim.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Init, Param, zeros
from bigmodel_jax.nn import cpu, linear

Implementation = Literal["auto", "plain", "chunked"]

# The masked logit: finite, so that a row of nothing but masked keys gives a mean and not NaN.
MASKED = -1e30
# From this many keys on the (T, S) logits cost more memory than the running softmax costs time.
CHUNKED_FROM = 2048
CHUNK = 512


class Where(NamedTuple):
    """Where queries or keys stand: position in their document and segment (document) number, each (B, T) int32.

    A query sees the keys of its own segment at its own position and before. Segment 0 is padding.
    """

    positions: jax.Array
    segments: jax.Array


def spec(
    dim: int, num_heads: int, num_kv_heads: int, head_dim: int, *, init: Init, out_init: Init, bias: bool = False
) -> dict[str, Param]:
    """q (D, H, h), k and v (D, K, h), o (H, h, D), and with `bias` one for each."""
    tree = {
        "q": Param((dim, num_heads, head_dim), ("embed", "heads", "head_dim"), init),
        "k": Param((dim, num_kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), init),
        "v": Param((dim, num_kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), init),
        "o": Param((num_heads, head_dim, dim), ("heads", "head_dim", "embed"), out_init),
    }
    if bias:
        # (H, h) biases are vectors in disguise: no weight decay.
        tree["q_bias"] = Param((num_heads, head_dim), ("heads", "head_dim"), zeros(), decay=False)
        tree["k_bias"] = Param((num_kv_heads, head_dim), ("kv_heads", "head_dim"), zeros(), decay=False)
        tree["v_bias"] = Param((num_kv_heads, head_dim), ("kv_heads", "head_dim"), zeros(), decay=False)
        tree["o_bias"] = Param((dim,), ("embed",), zeros())
    return tree


def qkv(p: dict, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (B, T, H, h), keys and values (B, T, K, h)."""
    out = []
    for name in ("q", "k", "v"):
        y = linear.project(x_BTD, p[name])
        out.append(y + p[f"{name}_bias"] if f"{name}_bias" in p else y)
    return tuple(out)


def project_out(p: dict, x_BTHh: jax.Array) -> jax.Array:
    """(B, T, H, h) -> (B, T, D)."""
    y = linear.project(x_BTHh, p["o"], num_dims=2)
    return y + p["o_bias"] if "o_bias" in p else y


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_where: Where,
    k_where: Where,
    *,
    causal: bool = True,
    implementation: Implementation = "auto",
) -> jax.Array:
    """softmax(q k / sqrt(h)) v within segments -> (B, T, H, h); q (B, T, H, h), k and v (B, S, K, h)."""
    if implementation == "auto":
        implementation = "chunked" if k.shape[1] >= CHUNKED_FROM and q.shape[1] > 1 else "plain"
    if implementation == "plain" and cpu.active():
        return _plain_on_cpu(q, k, v, q_where, k_where, causal)
    fn = {"plain": plain, "chunked": chunked}[implementation]
    return fn(q, k, v, q_where, k_where, causal)


def visible(q_where: Where, k_where: Where, causal: bool) -> jax.Array:
    """Boolean (B, T, S): which keys a query sees."""
    mask = q_where.segments[:, :, None] == k_where.segments[:, None, :]
    return mask & (q_where.positions[:, :, None] >= k_where.positions[:, None, :]) if causal else mask


def plain(q, k, v, q_where, k_where, causal):
    """The definition: logits (B, K, G, T, S) in memory, softmax in float32."""
    B, T, H, h = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, h) * h**-0.5
    logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(visible(q_where, k_where, causal)[:, None, None], logits, MASKED)
    probs = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", probs, v).reshape(B, T, H, h)


def _plain_on_cpu(q, k, v, q_where, k_where, causal):
    """`plain` as one batched product per kv head: a group's query heads are stacked over rows."""
    B, T, H, h = q.shape
    K = k.shape[2]
    q = (q * h**-0.5).transpose(0, 2, 1, 3).reshape(B, K, H // K * T, h)
    mask = jnp.where(visible(q_where, k_where, causal), 0.0, MASKED)
    bias = jnp.tile(mask[:, None], (1, 1, H // K, 1))
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = cpu.attend(*(x.astype(jnp.float32) for x in (q, k, v)), bias)
    return out.reshape(B, H, T, h).transpose(0, 2, 1, 3).astype(v.dtype)


def chunked(q, k, v, q_where, k_where, causal):
    """Running softmax over blocks of keys: memory O(T) instead of O(T S), forward and backward.

    Milakov & Gimelshein, arXiv:1805.02867; Rabe & Staats, arXiv:2112.05682.
    """
    T, S = q.shape[1], k.shape[1]
    block_q, block_k = min(CHUNK, T), min(CHUNK, S)
    q, q_where = _pad(q, q_where, -T % block_q)
    k, k_where = _pad(k, k_where, -S % block_k, segment=-1)
    v = jnp.pad(v, ((0, 0), (0, -S % block_k), (0, 0), (0, 0)))
    keys = jax.tree.map(lambda x: _blocks(x, block_k), (k, v, k_where))
    one = functools.partial(_query_block, keys=keys, causal=causal)
    out = jax.lax.map(jax.checkpoint(one, prevent_cse=False), jax.tree.map(lambda x: _blocks(x, block_q), (q, q_where)))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)[:, :T].astype(v.dtype)


def _query_block(q_and_where, *, keys, causal):
    """One block of queries against all blocks of keys; q (B, t, H, h) -> (B, t, H, h) float32."""
    q, q_where = q_and_where
    B, t, H, h = q.shape
    K = keys[0].shape[3]
    q = q.reshape(B, t, K, H // K, h) * h**-0.5

    def step(carry, block):
        acc, top, total = carry
        k, v, k_where = block
        logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
        logits = jnp.where(visible(q_where, k_where, causal)[:, None, None], logits, MASKED)
        new_top = jnp.maximum(top, logits.max(-1))
        probs, shrink = jnp.exp(logits - new_top[..., None]), jnp.exp(top - new_top)
        acc = acc * shrink[..., None] + jnp.einsum("bkgts,bskh->bkgth", probs, v.astype(jnp.float32))
        return (acc, new_top, total * shrink + probs.sum(-1)), None

    start = jnp.zeros((B, K, H // K, t), jnp.float32)
    carry = (jnp.zeros((*start.shape, h), jnp.float32), start + MASKED, start)
    (acc, _, total), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, keys)
    return jnp.moveaxis(acc / total[..., None], 3, 1).reshape(B, t, H, h)


def _pad(x, where, n, segment=0):
    """`n` more rows on dimension 1, in a segment that no key or query of the other side carries by accident."""
    x = jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0)))
    positions = jnp.pad(where.positions, ((0, 0), (0, n)))
    return x, Where(positions, jnp.pad(where.segments, ((0, 0), (0, n)), constant_values=segment))


def _blocks(x, size):
    """(B, n * size, ...) -> (n, B, size, ...)."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)
