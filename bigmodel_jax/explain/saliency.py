"""Saliency: the gradient of an output with respect to the input.

Source: Simonyan et al., arXiv:1312.6034, section 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def gradient(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The gradient of the scalar f(x), in the shape of x."""
    return jax.grad(f)(x)


def by_place(values: jax.Array) -> jax.Array:
    """The largest magnitude over the last dimension (channels or embeddings): one number per
    place."""
    return jnp.abs(values).max(axis=-1)
