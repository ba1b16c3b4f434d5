"""Products with a weight in 8 bits: int8 or float8 operands, sums in int32 or float32.

Both operands are scaled dynamically, without calibration or state: each row of the activations and
each column of the weight by its own largest value, so that an outlier affects its own row alone.
Gradients ignore the rounding (straight-through estimator, Bengio et al., arXiv:1308.3432). A
training step has three products. The output and the gradient of the input are computed in 8 bits.
The gradient of the weight stays in the operands' dtype, because it sums over all tokens and its
noise would end in the weights: SwitchBack (Wortsman et al., arXiv:2304.13013). float8 has e4m3 for
values and e5m2 for gradients (Micikevicius et al., arXiv:2209.05433). The reference implementations
of int8 with dynamic channel-wise scales are AQT (github.com/google/aqt) and Qwix.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core.channels import Channeled

Kind = Literal["int8", "float8"]
VALUES = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}
GRADIENTS = {"int8": jnp.int8, "float8": jnp.float8_e5m2}


def quantize(x: jax.Array, dims: tuple[int, ...], dtype) -> tuple[jax.Array, jax.Array]:
    """Returns (x / scale in `dtype`, scale), where scale is float32.

    The largest value over `dims` sets the scale, which keeps `dims` as dimensions of size 1.
    """
    info = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)
    x = x.astype(jnp.float32)
    top = jnp.max(jnp.abs(x), axis=dims, keepdims=True)
    # Zeros have the scale 1, so that nothing is divided by 0.
    scale = jnp.where(top > 0, top / float(info.max), 1.0)
    x = jnp.clip(x / scale, -float(info.max), float(info.max))
    return (jnp.round(x) if jnp.issubdtype(dtype, jnp.integer) else x).astype(dtype), scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def project(kind: Kind, num_dims: int, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contracts the last `num_dims` dimensions of x with the first ones of w, in 8 bits."""
    return _forward(kind, num_dims, x, w)[0]


def _forward(kind, num_dims, x, w):
    inner_x, inner_w = tuple(range(x.ndim - num_dims, x.ndim)), tuple(range(num_dims))
    y = _scaled(quantize(x, inner_x, VALUES[kind]), quantize(w, inner_w, VALUES[kind]), inner_x, inner_w)
    return y.astype(x.dtype), (x, w)


def _backward(kind, num_dims, saved, dy):
    x, w = saved
    outer_dy, outer_w = tuple(range(x.ndim - num_dims, dy.ndim)), tuple(range(num_dims, w.ndim))
    dx = _scaled(quantize(dy, outer_dy, GRADIENTS[kind]), quantize(w, outer_w, VALUES[kind]), outer_dy, outer_w)
    rows = tuple(range(x.ndim - num_dims))
    # This product stays in the operands' dtype and sums in float32 (see the module's text).
    dw = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx.astype(x.dtype), dw.astype(w.dtype)


project.defvjp(_forward, _backward)


def project_stored(num_dims: int, x: jax.Array, w: Channeled) -> jax.Array:
    """`project` with a weight stored in int8: int8 by int8, summed in int32. It has no gradient."""
    inner = tuple(range(x.ndim - num_dims, x.ndim))
    if w.activation is None:
        rows = quantize(x, inner, jnp.int8)
    else:
        scale = w.activation.reshape((1,) * x.ndim)
        values = jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -127, 127).astype(jnp.int8)
        rows = values, jnp.broadcast_to(scale, (*x.shape[: x.ndim - num_dims], *(1,) * num_dims))
    return _scaled(rows, (w.values, w.scales), inner, tuple(range(num_dims))).astype(x.dtype)


def _scaled(a, b, contract_a: tuple[int, ...], contract_b: tuple[int, ...]) -> jax.Array:
    """The product of two quantized arrays in float32.

    Its dimensions are those of a that are not contracted, followed by those of b.
    """
    (a, scale_a), (b, scale_b) = a, b
    wide = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
    y = jax.lax.dot_general(a, b, ((contract_a, contract_b), ((), ())), preferred_element_type=wide)
    scale_a, scale_b = scale_a.squeeze(contract_a), scale_b.squeeze(contract_b)
    return y.astype(jnp.float32) * scale_a.reshape(*scale_a.shape, *(1,) * scale_b.ndim) * scale_b
