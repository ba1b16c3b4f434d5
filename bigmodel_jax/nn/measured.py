"""A weight that measures its inputs: the gradient of a probe is the sum of their squares.

The probe of a weight (*lead, *I, *O) has the shape (*lead, *I) and does not change the output. Its
gradient, for any loss, is the sum of each input's square over all rows. A scan over layers returns
it per layer, as it returns gradients.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.nn.lora import Adapted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measured(Adapted):
    """The weight w. probe: an array (*lead, *I) float32. Its gradient is the sum."""

    probe: Any = None

    def project(self, x: jax.Array, num_dims: int, product: Callable) -> jax.Array:
        return product(_seen(num_dims, x, self.probe), self.w, num_dims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _seen(num_dims: int, x: jax.Array, probe: jax.Array) -> jax.Array:
    return x


def _forward(num_dims, x, probe):
    return x, (x, probe)


def _backward(num_dims, kept, d):
    x, probe = kept
    # The probe's true gradient is 0, since `_seen` ignores it. The squares are returned in its
    # place.
    squares = jnp.square(x.astype(jnp.float32)).sum(tuple(range(x.ndim - num_dims)))
    return d, squares.reshape(probe.shape).astype(probe.dtype)


_seen.defvjp(_forward, _backward)
