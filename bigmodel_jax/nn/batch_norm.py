"""Batch norm over frames of which some are padding (Ioffe & Szegedy, arXiv:1502.03167).

Padding frames do not enter the statistics. Statistics are float32, because a mean of many squares
loses its low bits in bfloat16. Shapes: B batch, T frames, C channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Param, ones, zeros

EPS, MOMENTUM = 1e-5, 0.9  # torch writes this momentum as 0.1


def spec(dim: int, axis: str) -> dict[str, Param]:
    """scale and bias (C,), trained, and the running statistics mean and var (C,)."""
    return {
        "scale": Param((dim,), (axis,), ones()),
        "bias": Param((dim,), (axis,), zeros()),
        "mean": Param((dim,), (axis,), zeros(), kind="statistic"),
        "var": Param((dim,), (axis,), ones(), kind="statistic"),
    }


def apply(p: dict, x_BTC: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """x (B, T, C) normalised by mean and var (C,), then scaled and shifted, in x's dtype."""
    x32 = (x_BTC.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + EPS)
    return (x32 * p["scale"] + p["bias"]).astype(x_BTC.dtype)


def sums(x_BTC: jax.Array, mask_BT: jax.Array, across: Callable = lambda x: x) -> dict[str, jax.Array]:
    """Returns {"count" (), "total" (C,), "squares" (C,)} of the unmasked frames, float32.

    across: adds a sum over devices.
    """
    mask = mask_BT.astype(jnp.float32)[..., None]
    x32 = x_BTC.astype(jnp.float32) * mask
    found = {"count": mask.sum(), "total": x32.sum((0, 1)), "squares": jnp.square(x32).sum((0, 1))}
    return jax.tree.map(across, found)


def moments(found: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance, (..., C) each, from `sums`.

    Dimensions of stacked layers may come first.
    """
    count = jnp.maximum(found["count"], 1)[..., None]
    mean = found["total"] / count
    # Rounding can make E[x^2] - E[x]^2 slightly negative.
    return mean, jnp.maximum(found["squares"] / count - jnp.square(mean), 0)


def moved(p: dict, found: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The running statistics after a training call. The variance is the unbiased one, as in torch.

    If the mask kept no frame, the statistics stay as they are.
    """
    mean, var = moments(found)
    count = found["count"][..., None]
    var = var * count / jnp.maximum(count - 1, 1)
    some = count > 0
    new = {"mean": mean, "var": var}
    return {name: jnp.where(some, MOMENTUM * p[name] + (1 - MOMENTUM) * new[name], p[name]) for name in new}
