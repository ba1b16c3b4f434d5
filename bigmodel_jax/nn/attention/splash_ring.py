"""Ring attention with splash kernels: each turn has one static mask, and softmaxes merge.

Liu et al., arXiv:2310.01889. Turns are merged by the logarithms of their sums, and the gradient of
each turn needs only the whole row's sum and outputs (Dao, arXiv:2307.08691).

In zig-zag order (context.py) device i holds pieces i and 2n-1-i. Every query of device i sees the
first piece of the keys that an earlier device holds, and no query sees the second piece. Queries of
the second piece see all keys that a later device holds, and queries of the first piece see none of
them. A query sees those keys of its own device that come before it. These three masks are known
when the program is traced.

Shapes: B batch, T query, S key of one device, H heads, K kv heads, h head_dim, w value dimensions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel

from bigmodel_jax.nn.attention import splash
from bigmodel_jax.nn.attention.blockwise import LOWEST
from bigmodel_jax.nn.attention.context import pass_on
from bigmodel_jax.nn.attention.visibility import KEPT, Rule, Where


class Queries(NamedTuple):
    """q (B, H, T, h) and its segments (B, T)."""

    q: jax.Array
    segments: jax.Array


class Keys(NamedTuple):
    """The arrays that travel: k (B, K, S, h), v (B, K, S, w) and their segments (B, S)."""

    k: jax.Array
    v: jax.Array
    segments: jax.Array


class Result(NamedTuple):
    """Outputs (B, H, T, w) and the logarithms of the rows' sums (B, H, T), float32."""

    out: jax.Array
    log_sum: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(rule: Rule, axis: str, interpret: bool, q, k, v, sinks, q_where: Where, k_where: Where) -> jax.Array:
    """Returns (B, T, H, w), as the `turns` of `context.ring`.

    q is scaled, the rule has no window, and a causal ring is in zig-zag order. T = S is a multiple
    of 256, so that half of it is a multiple of LANES. interpret: run on any platform.
    """
    return _forward(rule, axis, interpret, q, k, v, sinks, q_where, k_where)[0]


def _forward(rule, axis, interpret, q, k, v, sinks, q_where, k_where):
    queries = Queries(q.swapaxes(1, 2), q_where.segments)
    keys = Keys(k.swapaxes(1, 2), v.swapaxes(1, 2), k_where.segments)
    see = functools.partial(_see, rule, interpret, queries)

    def turn(carry, t):
        found, keys = carry
        # Computation and transfer read the same keys, so they overlap.
        return (_merged(found, _turn(rule, axis, t, see, keys)), pass_on(keys, axis)), None

    n = jax.lax.axis_size(axis)
    # A device's own keys come first: they alone need the diagonal mask.
    found = _with_sinks(see(keys, rule.causal), sinks)
    (found, last), _ = jax.lax.scan(turn, (found, pass_on(keys, axis)), jnp.arange(1, n - 1))
    found = _merged(found, _turn(rule, axis, n - 1, see, last))
    out = checkpoint_name(found.out.astype(v.dtype), KEPT)
    log_sum = checkpoint_name(found.log_sum, KEPT)
    return out.swapaxes(1, 2), (queries, keys, sinks, Result(out, log_sum))


def _backward(rule, axis, interpret, saved, d_out):
    queries, keys, sinks, found = saved
    d_out = d_out.swapaxes(1, 2)
    see = functools.partial(_gradients, rule, interpret, queries, found, d_out)

    def add(dq, dkv, t, keys):
        dq_more, *dkv_more = _turn(rule, axis, t, see, keys)
        return dq + dq_more, jax.tree.map(jnp.add, dkv, tuple(dkv_more))

    def turn(carry, t):
        dq, dkv, keys = carry
        dq, dkv = add(dq, dkv, t, keys)
        return (dq, *pass_on((dkv, keys), axis)), None

    n = jax.lax.axis_size(axis)
    # The keys' gradients travel with the keys, in float32, since every device adds to them.
    dq, *dkv = see(keys, rule.causal)
    (dq, dkv, last), _ = jax.lax.scan(turn, (dq, *pass_on((tuple(dkv), keys), axis)), jnp.arange(1, n - 1))
    dq, dkv = add(dq, dkv, n - 1, last)
    dk, dv = pass_on(dkv, axis)  # the last step brings them back to the keys' device
    d_sinks = None
    if sinks is not None:
        delta = jnp.sum(d_out.astype(jnp.float32) * found.out.astype(jnp.float32), axis=-1)
        share = -jnp.exp(sinks.astype(jnp.float32)[:, None] - found.log_sum) * delta
        d_sinks = share.sum((0, 2)).astype(sinks.dtype)
    grads = zip((dq, dk, dv), (queries.q, keys.k, keys.v), strict=True)
    return *(g.astype(x.dtype).swapaxes(1, 2) for g, x in grads), d_sinks, None, None


attend.defvjp(_forward, _backward)


# -------------------------------------------------------------------------------------------- turns


def _turn(rule: Rule, axis: str, t, see, keys: Keys):
    """Applies `see` to the keys that came from t devices before: an earlier or a later device."""
    if not rule.causal:
        return see(keys, False)
    earlier = t <= jax.lax.axis_index(axis)
    return jax.lax.cond(earlier, lambda: see(keys, False, k_part=1), lambda: see(keys, False, q_part=2))


def _half(tree: Any, part: int) -> Any:
    """All tokens of every array (part 0), or the first (1) or second (2) half of them."""

    def one(x: jax.Array) -> jax.Array:
        axis = _tokens(x)
        half = x.shape[axis] // 2
        return jax.lax.slice_in_dim(x, half * (part - 1), half * part, axis=axis)

    return jax.tree.map(one, tree) if part else tree


def _placed(x: jax.Array, part: int, fill: float = 0.0) -> jax.Array:
    """The inverse of `_half`: x in its half, `fill` in the other half."""
    other = jnp.full_like(x, fill)
    return jnp.concatenate([(x, other), (other, x)][part - 1], axis=_tokens(x)) if part else x


def _tokens(x: jax.Array) -> int:
    """The dimension that counts tokens: the last of (B, T), otherwise the third."""
    return min(2, x.ndim - 1)


def _merged(a: Result, b: Result) -> Result:
    """The softmax over the keys of both results."""
    log_sum = jnp.logaddexp(a.log_sum, b.log_sum)
    out = sum(x.out * jnp.exp(x.log_sum - log_sum)[..., None] for x in (a, b))
    return Result(out, log_sum)


def _with_sinks(found: Result, sinks: jax.Array | None) -> Result:
    """The result with one more key per head, which has a logit and no value."""
    if sinks is None:
        return found
    logits = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None], found.log_sum.shape)
    return _merged(found, Result(jnp.zeros_like(found.out), logits))


# ------------------------------------------------------------------------------------------ kernels


def _see(rule, interpret, queries: Queries, keys: Keys, own: bool, q_part: int = 0, k_part: int = 0) -> Result:
    """Attention of the queries, or half of them, to the keys, or half of them."""
    (q, q_segments), (k, v, k_segments) = _half(queries, q_part), _half(keys, k_part)
    kernel = _kernel(rule, own, q, k, interpret, save_residuals=True)

    def one(q, k, v, *segments):
        out, (log_sum,) = kernel(q, k, v, splash_kernel.SegmentIds(*segments))
        return out.astype(jnp.float32), log_sum

    out, log_sum = jax.vmap(one)(q, k, v, q_segments, k_segments)
    return Result(_placed(out, q_part), _placed(log_sum, q_part, LOWEST))


def _gradients(rule, interpret, queries, found: Result, d_out, keys: Keys, own: bool, q_part: int = 0, k_part: int = 0):
    """Returns (dq, dk, dv), float32, of `_see`; found: the result of all turns together."""
    (q, q_segments), (k, v, k_segments) = _half(queries, q_part), _half(keys, k_part)
    given = _half((*found, d_out), q_part)
    kernel = _kernel(rule, own, q, k, interpret)
    options = [kernel.kwargs[name] for name in BACKWARD]

    def one(q, k, v, q_segments, k_segments, out, log_sum, d_out):
        segments = splash_kernel.SegmentIds(q_segments, k_segments)
        saved = (q, k, v, segments, None, out, log_sum, kernel.dq_mask_info, kernel.dkv_mask_info)
        # This function is private: the public gradient is that of a single turn's softmax.
        return splash_kernel._splash_attention_bwd(*options, saved, d_out)[3:6]

    dq, dk, dv = (x.astype(jnp.float32) for x in jax.vmap(one)(q, k, v, q_segments, k_segments, *given))
    return _placed(dq, q_part), _placed(dk, k_part), _placed(dv, k_part)


# The options of splash's backward pass, in its order.
BACKWARD = (
    "save_residuals",
    "mask_value",
    "is_mqa",
    "block_sizes",
    "residual_checkpoint_name",
    "mask_function",
    "attn_logits_soft_cap",
    "interpret",
)


def _kernel(rule: Rule, own: bool, q, k, interpret: bool, **options):
    rule = rule._replace(causal=own and rule.causal, window=0)
    return splash.kernel(rule, q.shape[1], (q.shape[2], k.shape[2]), interpret, **options)
