"""Activations by name: one table for every model whose config has the field `activation`."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

Activation = Literal[
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "silu",
    "mish",
    "softplus",
    "sigmoid",
    "tanh",
]


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x): an approximation of GELU (arXiv:1606.08415), which CLIP uses."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}
