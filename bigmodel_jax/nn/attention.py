"""Attention: one door, `attend`, over several implementations.

Shapes: B batch, T query, S key, D embed, H heads, K kv heads, G = H / K query heads per kv head, h head_dim.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.core.params import Init, Param, ones, zeros
from bigmodel_jax.nn import cpu, linear, norm

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
    dim: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    init: Init,
    out_init: Init,
    bias: bool = False,
    out_bias: bool | None = None,
    qk_norm: bool = False,
) -> dict[str, Param | dict]:
    """q (D, H, h), k and v (D, K, h), o (H, h, D); with `bias` one for each (`out_bias` decides for o alone); with
    `qk_norm` an RMSNorm over each head's queries and keys."""
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
    if bias if out_bias is None else out_bias:
        tree["o_bias"] = Param((dim,), ("embed",), zeros())
    if qk_norm:
        tree["q_norm"] = {"scale": Param((head_dim,), ("head_dim",), ones())}
        tree["k_norm"] = {"scale": Param((head_dim,), ("head_dim",), ones())}
    return tree


def qkv(
    p: dict, x_BTD: jax.Array, *, norm_eps: float = 1e-6, norm_offset: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (B, T, H, h), keys and values (B, T, K, h), with the biases and norms that `p` holds."""
    out = []
    for name in ("q", "k", "v"):
        y = linear.project(x_BTD, p[name])
        y = y + p[f"{name}_bias"] if f"{name}_bias" in p else y
        out.append(norm.rms(p[f"{name}_norm"], y, eps=norm_eps, offset=norm_offset) if f"{name}_norm" in p else y)
    return tuple(checkpoint_name(y, "qkv") for y in out)


def project_out(p: dict, x_BTHh: jax.Array) -> jax.Array:
    """(B, T, H, h) -> (B, T, D)."""
    y = linear.project(checkpoint_name(x_BTHh, "attn"), p["o"], num_dims=2)
    return y + p["o_bias"] if "o_bias" in p else y


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_where: Where,
    k_where: Where,
    *,
    causal: bool = True,
    window: int | jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: jax.Array | None = None,
    bias: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """softmax(scale q k + bias) v within segments -> (B, T, H, w); q (B, T, H, h), k (B, S, K, h), v (B, S, K, w).

    window: a query sees so many positions back, its own included (arXiv:2004.05150); a traced scalar may differ by layer.
    scale: 1/sqrt(h) by default. softcap: logits become c tanh(logits / c) (Gemma 2, arXiv:2408.00118).
    sinks: (H,) logits of a key without a value, so that a head may attend to nothing (gpt-oss, arXiv:2309.17453).
    bias: (B or 1, H, T, S), added to the logits; only the plain implementation takes it.
    """
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    if implementation == "auto":
        long = k.shape[1] >= CHUNKED_FROM and q.shape[1] > 1
        implementation = "chunked" if long and bias is None else "plain"
    seen = functools.partial(visible, causal=causal, window=window)
    if implementation == "chunked":
        if bias is not None:
            raise ValueError("model.attention = 'chunked': this model's attention bias needs 'plain' or 'auto'")
        return chunked(q, k, v, q_where, k_where, seen, softcap, sinks)
    mask = seen(q_where, k_where)
    if cpu.active() and not softcap and sinks is None and bias is None:
        return _plain_on_cpu(q, k, v, mask)
    return plain(q, k, v, mask, softcap, sinks, bias)


def visible(q_where: Where, k_where: Where, causal: bool = True, window: int | jax.Array | None = None) -> jax.Array:
    """Boolean (B, T, S): which keys a query sees."""
    mask = q_where.segments[:, :, None] == k_where.segments[:, None, :]
    distance = q_where.positions[:, :, None] - k_where.positions[:, None, :]
    if causal:
        mask &= distance >= 0
    return mask if window is None else mask & (distance < window)


def _capped(logits, softcap):
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def plain(q, k, v, mask, softcap=0.0, sinks=None, bias=None):
    """The definition: logits (B, K, G, T, S) in memory, softmax in float32; q already scaled, mask (B, T, S)."""
    B, T, H, h = q.shape
    K, S = k.shape[2], k.shape[1]
    grouped = (K, H // K)
    logits = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, T, *grouped, h), k, preferred_element_type=jnp.float32)
    logits = _capped(logits, softcap)
    if bias is not None:
        logits += bias.reshape(bias.shape[0], *grouped, T, S).astype(jnp.float32)
    logits = jnp.where(mask[:, None, None], logits, MASKED)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks.reshape(*grouped, 1, 1).astype(jnp.float32), (B, *grouped, T, 1))
        logits = jnp.concatenate([logits, sink], axis=-1)
    probs = jax.nn.softmax(logits, axis=-1)[..., :S].astype(v.dtype)
    return jnp.einsum("bkgts,bskw->btkgw", probs, v).reshape(B, T, H, v.shape[-1])


def _plain_on_cpu(q, k, v, mask):
    """`plain` as one batched product per kv head: a group's query heads are stacked over rows."""
    B, T, H, h = q.shape
    K = k.shape[2]
    q = q.transpose(0, 2, 1, 3).reshape(B, K, H // K * T, h)
    bias = jnp.tile(jnp.where(mask, 0.0, MASKED)[:, None], (1, 1, H // K, 1))
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = cpu.attend(*(x.astype(jnp.float32) for x in (q, k, v)), bias)
    return out.reshape(B, H, T, v.shape[-1]).transpose(0, 2, 1, 3).astype(v.dtype)


def chunked(q, k, v, q_where, k_where, seen, softcap=0.0, sinks=None):
    """Running softmax over blocks of keys: memory O(T) instead of O(T S), forward and backward.

    Milakov & Gimelshein, arXiv:1805.02867; Rabe & Staats, arXiv:2112.05682.
    """
    B, T, H, _ = q.shape
    S = k.shape[1]
    block_q, block_k = min(CHUNK, T), min(CHUNK, S)
    q, q_where = _pad(q, q_where, -T % block_q)
    k, k_where = _pad(k, k_where, -S % block_k, segment=-1)
    v = jnp.pad(v, ((0, 0), (0, -S % block_k), (0, 0), (0, 0)))
    keys = jax.tree.map(lambda x: _blocks(x, block_k), (k, v, k_where))
    one = functools.partial(_query_block, keys=keys, seen=seen, softcap=softcap, sinks=sinks)
    out = jax.lax.map(jax.checkpoint(one, prevent_cse=False), jax.tree.map(lambda x: _blocks(x, block_q), (q, q_where)))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, H, v.shape[-1])[:, :T].astype(v.dtype)


def _query_block(q_and_where, *, keys, seen, softcap, sinks):
    """One block of queries against all blocks of keys; q (B, t, H, h) -> (B, t, H, w) float32."""
    q, q_where = q_and_where
    B, t, H, h = q.shape
    K, w = keys[0].shape[3], keys[1].shape[4]
    q = q.reshape(B, t, K, H // K, h)

    def step(carry, block):
        acc, top, total = carry
        k, v, k_where = block
        logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
        logits = jnp.where(seen(q_where, k_where)[:, None, None], _capped(logits, softcap), MASKED)
        new_top = jnp.maximum(top, logits.max(-1))
        probs, shrink = jnp.exp(logits - new_top[..., None]), jnp.exp(top - new_top)
        acc = acc * shrink[..., None] + jnp.einsum("bkgts,bskw->bkgtw", probs, v.astype(jnp.float32))
        return (acc, new_top, total * shrink + probs.sum(-1)), None

    start = jnp.zeros((B, K, H // K, t), jnp.float32)
    # A sink is a first key whose value is zero.
    top = start + (MASKED if sinks is None else sinks.reshape(K, H // K, 1).astype(jnp.float32))
    carry = (jnp.zeros((*start.shape, w), jnp.float32), top, start + (0.0 if sinks is None else 1.0))
    (acc, _, total), _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, keys)
    return jnp.moveaxis(acc / total[..., None], 3, 1).reshape(B, t, H, w)


def _pad(x, where, n, segment=0):
    """`n` more rows on dimension 1, in a segment that no key or query of the other side carries by accident."""
    x = jnp.pad(x, ((0, 0), (0, n), (0, 0), (0, 0)))
    positions = jnp.pad(where.positions, ((0, 0), (0, n)))
    return x, Where(positions, jnp.pad(where.segments, ((0, 0), (0, n)), constant_values=segment))


def _blocks(x, size):
    """(B, n * size, ...) -> (n, B, size, ...)."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)
