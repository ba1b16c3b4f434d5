"""SmoothGrad: the mean gradient over noisy copies of the input (Smilkov et al.,
arXiv:1706.03825)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

COPIES, NOISE = 50, 0.15  # section 3.1: 50 copies, noise of 10 to 20 % of the input's range


def smooth_grad(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, rng: jax.Array, *, copies: int = COPIES, noise: float = NOISE
) -> jax.Array:
    """The mean gradient of f at `copies` noisy copies of x, in the shape of x.

    noise: standard deviation of the Gaussian noise, as a share of the range of x.
    """
    spread = noise * (x.max() - x.min())

    def one(key: jax.Array) -> jax.Array:
        return jax.grad(f)(x + spread * jax.random.normal(key, x.shape, x.dtype))

    # Batches of 8 copies limit the memory.
    return jnp.mean(jax.lax.map(one, jax.random.split(rng, copies), batch_size=8), axis=0)
