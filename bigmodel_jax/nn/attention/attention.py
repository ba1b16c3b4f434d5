"""Attention: one function, `attend`, for several implementations.

Shapes: B batch, T query, S key, D embed, H heads, K kv heads, G = H / K query heads per kv head, h
head_dim, w value dimensions.
"""

import functools
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding, storage
from bigmodel_jax.core.params import Init, Param, ones, zeros
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.nn import cpu, kept, linear, norm, recompute, shards
from bigmodel_jax.nn.attention import blockwise, context, entropy, kernels
from bigmodel_jax.nn.attention.visibility import KEPT, Rule, Where, capped, reach, visible
from bigmodel_jax.nn.cross_entropy import MASKED
from bigmodel_jax.nn.taps import tap

__all__ = ["Implementation", "Where", "attend", "plain", "project_out", "qkv", "spec", "visible"]

Implementation = Literal["auto", "plain", "chunked", "dot_product", "splash", "cudnn"]

# "auto" chooses "chunked" from this many keys on: the (T, S) logits then cost more memory than the
# running softmax costs time.
CHUNKED_FROM = 2048
# "auto" chooses an accelerator's kernel from this many keys on, which is one of its blocks.
KERNEL_FROM = 512
KERNELS = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}


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
    """q (D, H, h), k and v (D, K, h), o (H, h, D).

    bias: q_bias (H, h), k_bias and v_bias (K, h), o_bias (D,). out_bias: overrides `bias` for o.
    qk_norm: q_norm and k_norm, RMSNorms (h,) over each head's queries and keys.
    """
    tree = {
        "q": Param((dim, num_heads, head_dim), ("embed", "heads", "head_dim"), init),
        "k": Param((dim, num_kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), init),
        "v": Param((dim, num_kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), init),
        "o": Param((num_heads, head_dim, dim), ("heads", "head_dim", "embed"), out_init),
    }
    if bias:
        # A bias (H, h) is a vector, although it has two dimensions: it has no weight decay.
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
    """Queries (B, T, H, h), keys and values (B, T, K, h), with the
    biases and norms that `p` holds.
    """
    out = []
    for name in ("q", "k", "v"):
        y = linear.project(x_BTD, p[name])
        y = y + p[f"{name}_bias"] if f"{name}_bias" in p else y
        y = norm.rms(p[f"{name}_norm"], y, eps=norm_eps, offset=norm_offset) if f"{name}_norm" in p else y
        # Here and in project_out, arrays are sharded by heads: if x is sharded along the sequence
        # over `tensor`, the compiler would otherwise gather the weights instead of x.
        out.append(constrain(y, "batch", "seq", "heads" if name == "q" else "kv_heads", "head_dim"))
    return tuple(checkpoint_name(y, kept.QKV) for y in out)


def project_out(p: dict, x_BTHh: jax.Array) -> jax.Array:
    """Maps (B, T, H, h) -> (B, T, D): the output projection, with its bias if `p` has one."""
    x_BTHh = constrain(x_BTHh, "batch", "seq", "heads", "head_dim")
    y = linear.project(x_BTHh, p["o"], num_dims=2)
    return tap("attention", y + p["o_bias"] if "o_bias" in p else y)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_where: Where,
    k_where: Where,
    *,
    causal: bool = True,
    window: int | None = None,
    local: jax.Array | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: jax.Array | None = None,
    bias: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Attention within segments: softmax(scale q k + bias) v, (B, T, H, w).

    q: (B, T, H, h). k: (B, S, K, h). v: (B, S, K, w). window: the number of positions that a query
    sees before it and, unless causal, after it, its own included (arXiv:2004.05150). local: ()
    bool, whether this layer has the window, for models whose layers differ. scale: 1/sqrt(h) by
    default. softcap: logits become c tanh(logits / c) (Gemma 2, arXiv:2408.00118). sinks: (H,)
    logits of a key without a value, which lets a head attend to nothing (gpt-oss,
    arXiv:2309.17453). bias: (B or 1, H, T, S), added to the logits. Only the plain implementation
    takes it.

    k and v may be stored in blocks (core/storage.py), as in an int8 cache. "auto" chooses an
    implementation by the platform of the mesh. For a sequence sharded over devices,
    `parallel.context` chooses how the devices exchange keys (context.py); "plain" leaves that to
    the compiler. Raises ValueError if `implementation` cannot compute what is asked.
    """
    k, v = storage.dense(k, q.dtype), storage.dense(v, q.dtype)
    chex.assert_rank((q, k, v), 4)
    chex.assert_equal_shape_prefix((k, v), 3)
    # q is scaled once here, so that no implementation scales the (T, S) logits.
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    k, v = context.spread(q, k, v)
    rule, place = Rule(causal, window or 0, softcap), context.place(q, k)
    tap("weights", functools.partial(_weights, rule, q, k, sinks, q_where, k_where, local, bias))
    tap("entropy", functools.partial(entropy.entropy, rule, q, k, q_where, k_where, local, sinks, bias))
    # With "plain", and with a bias, the compiler partitions a sharded sequence.
    if bias is not None or implementation == "plain":
        place = place._replace(seq=None)
    if place.seq and sharding.current_context() == "ring":
        one = functools.partial(context.ring, rule, place.seq, _turns(implementation, rule, place.seq, q, k))
    else:
        name = _choose(implementation, rule, q, k, v, sinks, bias)
        if name == "plain" and not place.seq:
            return _plain(rule, q, k, v, sinks, q_where, k_where, local, bias)
        one = functools.partial(LOCAL[name], rule)
        one = functools.partial(context.ulysses, one, place.seq) if place.seq else one
    specs = (place.q, place.kv, place.kv, place.sinks, place.where, place.where, P())
    return shards.run(one, specs, place.q, q, k, v, sinks, q_where, k_where, local)


def _choose(implementation, rule, q, k, v, sinks, bias) -> str:
    """The name of the implementation. Raises ValueError if the requested one cannot compute
    this.
    """
    mesh = sharding.current_mesh()
    platform = mesh.devices.flat[0].platform if mesh else ""
    T, S = q.shape[1], k.shape[1]
    # With a decode cache (T != S), the index of a query differs from that of its key, and kernels
    # compare indices. A training step has no cache.
    if T == 1 or not platform or (T != S and (rule.causal or rule.window)):
        implementation = "plain" if T == 1 else implementation if implementation in ("plain", "chunked") else "auto"
        platform = ""
    refusal = functools.partial(kernels.refusal, platform=platform, rule=rule, q=q, k=k, v=v, sinks=sinks, bias=bias)
    if implementation != "auto":
        reason = refusal(implementation)
        if reason:
            raise ValueError(f"model.compute.attention = {implementation!r}: {reason}; 'auto' chooses one that can")
        return implementation
    kernel = KERNELS.get(platform)
    if kernel and S >= KERNEL_FROM and not refusal(kernel):
        return kernel
    return "chunked" if S >= CHUNKED_FROM and bias is None else "plain"


def _turns(implementation, rule, axis: str, q, k) -> context.Turns:
    """The function for a ring's turns. Raises ValueError if the requested implementation cannot."""
    mesh = sharding.current_mesh()
    reason = kernels.ring_refusal(mesh.devices.flat[0].platform, rule, q.shape[1], k.shape[1], mesh.shape[axis])
    if implementation not in ("auto", "chunked", "splash"):
        raise ValueError(f"model.compute.attention = {implementation!r} needs parallel.context = 'ulysses', not 'ring'")
    if implementation == "splash" and reason:
        raise ValueError(
            f"model.compute.attention = 'splash' with parallel.context = 'ring': {reason}; 'auto' chooses one that can"
        )
    return context.blockwise_turns if implementation == "chunked" or reason else kernels.splash_turns


def _plain(rule, q, k, v, sinks, q_where, k_where, local, bias=None):
    mask = visible(q_where, k_where, rule.causal, reach(rule, local))
    if cpu.active() and not rule.softcap and sinks is None and bias is None:
        # If queries and keys are the same rows, positions grow from slot to slot (`Where`). Remat
        # makes two copies of the one object. The queries then stay in one block.
        in_order = rule.causal and q_where is k_where
        return checkpoint_name(_plain_on_cpu(q, k, v, mask, in_order), KEPT)

    def fn(q, k, v, mask, sinks, bias):
        return plain(q, k, v, mask, rule.softcap, sinks, bias)

    return checkpoint_name(recompute.from_arguments(fn)(q, k, v, mask, sinks, bias), KEPT)


def _chunked(rule, q, k, v, sinks, q_where, k_where, local):
    return blockwise.attend(rule, q, k, v, sinks, q_where, k_where, reach(rule, local))


# One device's part: (rule, q, k, v, sinks, q_where, k_where, local) -> (B, T, H, w); q is scaled.
LOCAL = {
    "plain": _plain,
    "chunked": _chunked,
    "dot_product": kernels.dot_product,
    "splash": kernels.splash,
    "cudnn": kernels.cudnn,
}


def plain(q, k, v, mask, softcap=0.0, sinks=None, bias=None):
    """Attention (B, T, H, w) by its definition, with all logits (B, K, G, T, S) in memory.

    q: already scaled. mask: (B, T, S) bool, True for visible keys.
    """
    (B, T, H, _), S = q.shape, k.shape[1]
    # Exponentials and their sum need float32. The product with v does not.
    probs = _probabilities(q, k, mask, softcap, sinks, bias).astype(v.dtype)
    if T == S:
        return jnp.einsum("bkgts,bskw->btkgw", probs, v).reshape(B, T, H, v.shape[-1])
    # For few queries against a cache, the query rows come first: with keys first, XLA's CPU backend
    # takes ten times as long.
    return jnp.einsum("bkgts,bskw->bkgtw", probs, v).transpose(0, 3, 1, 2, 4).reshape(B, T, H, v.shape[-1])


def _weights(rule, q, k, sinks, q_where, k_where, local, bias):
    """The attention weights (B, H, T, S) float32. A row sums to 1, less the share of its sink."""
    mask = visible(q_where, k_where, rule.causal, reach(rule, local))
    probs = _probabilities(q, k, mask, rule.softcap, sinks, bias)
    return probs.reshape(*q.shape[::2], *probs.shape[-2:])


def _probabilities(q, k, mask, softcap, sinks, bias):
    """Attention weights (B, K, G, T, S) float32."""
    B, T, H, h = q.shape
    K, S = k.shape[2], k.shape[1]
    grouped = (K, H // K)
    logits = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, T, *grouped, h), k, preferred_element_type=jnp.float32)
    logits = capped(logits, softcap)
    if bias is not None:
        logits += bias.reshape(bias.shape[0], *grouped, T, S).astype(jnp.float32)
    # MASKED is finite: a padding row, which sees no key, gives a mean and not NaN.
    logits = jnp.where(mask[:, None, None], logits, MASKED)
    if sinks is not None:
        # A sink is one more column for the softmax, which is cut off after it.
        sink = jnp.broadcast_to(sinks.reshape(*grouped, 1, 1).astype(jnp.float32), (B, *grouped, T, 1))
        logits = jnp.concatenate([logits, sink], axis=-1)
    return jax.nn.softmax(logits, axis=-1)[..., :S]


def _plain_on_cpu(q, k, v, mask, in_order: bool):
    """`plain` in the forms of cpu.py.

    in_order: no query sees a key of a later slot. A block of queries then leaves out the keys after
    it.
    """
    if not in_order:
        return _block_on_cpu(q, k, v, mask)
    T, rows = q.shape[1], cpu.block_rows(q.shape[1])
    blocks = [(start, start + rows) for start in range(0, T, rows)]
    outs = [_block_on_cpu(q[:, a:b], k[:, :b], v[:, :b], mask[:, a:b, :b]) for a, b in blocks]
    return jnp.concatenate(outs, axis=1)


def _block_on_cpu(q, k, v, mask):
    """`plain` as one batched product per kv head. A group's query heads are stacked as rows."""
    B, T, H, h = q.shape
    K = k.shape[2]
    # The G = H / K query heads of a group become rows of one matrix.
    q = q.transpose(0, 2, 1, 3).reshape(B, K, H // K * T, h)
    bias = jnp.tile(jnp.where(mask, 0.0, MASKED)[:, None], (1, 1, H // K, 1))
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out = cpu.attend(*(x.astype(jnp.float32) for x in (q, k, v)), bias)
    return out.reshape(B, H, T, v.shape[-1]).transpose(0, 2, 1, 3).astype(v.dtype)
