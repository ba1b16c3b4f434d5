"""Group normalisation of images (Wu & He, arXiv:1803.08494)."""

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Param, ones, zeros


def spec(channels: int) -> dict[str, Param]:
    """scale and bias (C,) of one normalisation over images of C channels."""
    return {"scale": Param((channels,), ("mlp",), ones()), "bias": Param((channels,), ("mlp",), zeros())}


def apply(p: dict, x_BHWC: jax.Array, groups: int, *, eps: float = 1e-6) -> jax.Array:
    """Mean 0 and variance 1 over the pixels and the C / groups channels of each group; (B, H, W,
    C).

    Equals torch.nn.GroupNorm. The statistics are float32, since bfloat16 loses the mean of many
    squares.
    """
    B, H, W, C = x_BHWC.shape
    grouped = x_BHWC.astype(jnp.float32).reshape(B, H, W, groups, C // groups)
    centred = grouped - jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
    y = (centred * jax.lax.rsqrt(variance + eps)).reshape(x_BHWC.shape)
    return (y * p["scale"].astype(jnp.float32) + p["bias"].astype(jnp.float32)).astype(x_BHWC.dtype)
