"""Attention kernels of accelerators: splash on TPU, cuDNN's on GPU; their limits and their calls.

Both compare slots instead of positions: causality and window apply to the indices in the arrays
(see `Where`).

Shapes: B batch, T query, S key, H heads, K kv heads, h head_dim, w value dimensions.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigmodel_jax.nn.attention.blockwise import LANES
from bigmodel_jax.nn.attention.visibility import KEPT, Rule, Where, reach, visible

# cuDNN takes segments as an additive mask (B, 1, T, S) with 2 bytes per entry: at this length half
# a GiB per row.
CUDNN_MAX_KEYS = 16_384


def splash(rule: Rule, q, k, v, sinks, q_where: Where, k_where: Where, local: jax.Array | None) -> jax.Array:
    """Returns (B, T, H, w) by splash.py."""
    from bigmodel_jax.nn.attention import splash  # imports Pallas, which takes half a second

    return splash.attend(rule, q, k, v, sinks, q_where, k_where, local)


def splash_turns(rule: Rule, axis: str, q, k, v, sinks, q_where: Where, k_where: Where, window: jax.Array) -> jax.Array:
    """Returns (B, T, H, w) by splash_ring.py, as `turns` of `context.ring`."""
    from bigmodel_jax.nn.attention import splash_ring

    return splash_ring.attend(rule, axis, False, q, k, v, sinks, q_where, k_where)


def cudnn(rule: Rule, q, k, v, sinks, q_where: Where, k_where: Where, local: jax.Array | None) -> jax.Array:
    """Returns (B, T, H, w) by cuDNN's fused attention, which skips what lies above the diagonal.

    The arguments are those of `splash.attend`.
    """
    # The mask holds the window, because cuDNN's sliding window does not combine with a mask.
    return _dot_product(rule, q, k, v, q_where, k_where, local, is_causal=rule.causal, implementation="cudnn")


def dot_product(rule: Rule, q, k, v, sinks, q_where: Where, k_where: Where, local: jax.Array | None) -> jax.Array:
    """Returns (B, T, H, w) by XLA's `jax.nn.dot_product_attention`, with the logits in memory."""
    return _dot_product(rule, q, k, v, q_where, k_where, local, implementation="xla")


def _dot_product(rule, q, k, v, q_where, k_where, local, **options):
    mask = visible(q_where, k_where, rule.causal, reach(rule, local))[:, None]
    return checkpoint_name(jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, **options), KEPT)


# -------------------------------------------------------------------------- what each kernel can do


def refusal(name: str, platform: str, rule: Rule, q, k, v, sinks, bias) -> str:
    """Why this implementation cannot compute this, in words; '' if it can."""
    checks = {
        "plain": lambda: "",
        "chunked": lambda: _no(bias=bias),
        "dot_product": lambda: _no(bias=bias, sinks=sinks, softcap=rule.softcap or None) or _one_width(q, v),
        "splash": lambda: _only("TPU", ("tpu",), platform) or _no(bias=bias),
        "cudnn": lambda: (
            _only("NVIDIA GPUs", ("gpu", "cuda"), platform)
            or _no(bias=bias, sinks=sinks, softcap=rule.softcap or None)
            or _one_width(q, v)
            or _cudnn_shapes(q, k)
        ),
    }
    return checks[name]()


def ring_refusal(platform: str, rule: Rule, T: int, S: int, devices: int) -> str:
    """Why splash cannot compute a ring's turns over `devices` devices, in words; '' if it can.

    T, S: queries and keys of all devices together.
    """
    if only := _only("TPU", ("tpu",), platform):
        return only
    if rule.window and rule.window < S:
        return "which blocks a window hides depends on the device"
    if T != S or T % (2 * LANES * devices):  # in zig-zag order, some turns use half of a device's keys
        return f"queries and keys need one length, a multiple of {2 * LANES} a device, not {T}, {S} over {devices}"
    return ""


def _no(**features) -> str:
    words = {"bias": "an attention bias", "sinks": "attention sinks", "softcap": "a soft cap on attention's logits"}
    return next((f"this model has {words[name]}" for name, value in features.items() if value is not None), "")


def _only(where: str, platforms: tuple[str, ...], platform: str) -> str:
    return "" if platform in platforms else f"it runs on {where} alone, and this is a {platform}"


def _one_width(q, v) -> str:
    return "" if q.shape[-1] == v.shape[-1] else f"queries have {q.shape[-1]} dimensions a head, values {v.shape[-1]}"


def _cudnn_shapes(q, k) -> str:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, and precision.compute gives {q.dtype}"
    if q.shape[-1] > 128 or q.shape[-1] % 8:
        return f"it takes heads of up to 128 dimensions, a multiple of 8, and model.head_dim is {q.shape[-1]}"
    if q.shape[1] % 2 or k.shape[1] % 2:
        return f"it takes even lengths, and these are {q.shape[1]} and {k.shape[1]}"
    if k.shape[1] > CUDNN_MAX_KEYS:
        return f"its mask would not fit: {k.shape[1]} keys, more than {CUDNN_MAX_KEYS}"
    return ""
