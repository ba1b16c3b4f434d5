"""Normalisation over the last dimension.

Statistics are float32, because a mean of many squares loses its low bits in bfloat16.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Param, ones, zeros
from bigmodel_jax.nn import recompute


def rms_spec(dim: int) -> dict[str, Param]:
    """scale (dim,)."""
    return {"scale": Param((dim,), ("embed",), ones())}


def rms(p: dict, x: jax.Array, *, eps: float = 1e-5, offset: float = 0.0) -> jax.Array:
    """RMSNorm (Zhang & Sennrich, arXiv:1910.07467) of x (..., dim), times scale + `offset`.

    offset is 1 where scales are stored around 0 (Gemma). The mean runs over the scale's dimensions:
    the last one, or all heads of a token (OLMo 2).
    """
    axes = tuple(range(-p["scale"].ndim, 0))

    def fn(x, scale):
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + eps)
        return (y * (scale.astype(jnp.float32) + offset)).astype(x.dtype)

    return recompute.from_arguments(fn)(x, p["scale"])


def layer_spec(dim: int, bias: bool = True) -> dict[str, Param]:
    """scale (dim,) and, with `bias`, bias (dim,)."""
    return rms_spec(dim) | ({"bias": Param((dim,), ("embed",), zeros())} if bias else {})


def layer(p: dict, x: jax.Array, *, eps: float = 1e-5) -> jax.Array:
    """LayerNorm (Ba et al., arXiv:1607.06450) of x (..., dim), with a bias if `p` has one."""

    def fn(x, scale, *bias):
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
        y = y * scale.astype(jnp.float32)
        return (y + bias[0].astype(jnp.float32) if bias else y).astype(x.dtype)

    return recompute.from_arguments(fn)(x, *(p[name] for name in ("scale", "bias") if name in p))
