"""int8 weights with one scale per output channel, so that an int8 x int8 product sums exact
integers.

The inputs of the product are rounded to int8, too. Their scale is either each row's own
("dynamic"), or one number found on calibration rows ("static").
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core.storage import Blocked

TOP = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Channeled(Blocked):
    """A weight stored in int8 with one scale per output channel.

    - values: int8 (*lead, *I, *O)
    - scales: float32 (*lead, 1, ..., *O)
    - activation: float32 (*lead), the static scale of the product's input; None if it is dynamic
    """

    activation: Any = None

    def dense(self, dtype: Any) -> jax.Array:
        return (self.values.astype(jnp.float32) * self.scales).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Channels:
    """A storage that makes `Channeled` weights of arrays (*lead, *inputs, *outputs).

    - lead: number of leading dimensions, such as layers; each of their entries is a weight of its
      own
    - inputs: number of input dimensions after them
    - static: whether the inputs' scale is calibrated; `pack` cannot know that scale and stores NaN,
      and `calibrated` fills it in
    """

    lead: int
    inputs: int
    static: bool = False

    def __str__(self) -> str:
        return f"int8, inputs {'static' if self.static else 'dynamic'}"

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) <= self.lead + self.inputs:
            raise ValueError(
                f"storage: {self} of shape {shape}; it must have {self.lead + self.inputs + 1} dimensions or more"
            )

    def pack(self, w: jax.Array) -> Channeled:
        w = w.astype(jnp.float32)
        # keepdims, so that the scales broadcast against the weight.
        largest = jnp.max(jnp.abs(w), axis=self._reduced, keepdims=True)
        # A scale of 1 for an all-zero column avoids 0 / 0.
        scales = jnp.where(largest > 0, largest / TOP, 1.0)
        values = jnp.round(w / scales).astype(jnp.int8)
        activation = jnp.full(w.shape[: self.lead], jnp.nan, jnp.float32) if self.static else None
        return Channeled(values, scales, activation=activation)

    def calibrated(self, w: jax.Array, largest: jax.Array) -> Channeled:
        """The packed weight with its static input scale.

        largest: float32 (*lead), the largest magnitude of the product's inputs.
        """
        return dataclasses.replace(self.pack(w), activation=jnp.where(largest > 0, largest / TOP, 1.0))

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Channeled:
        # A PartitionSpec may be shorter than the shape. Missing entries mean unsharded.
        axes = (*placed.spec, *(None,) * len(shape))[: len(shape)]
        # The scales have size 1 along the inputs, so they cannot be sharded there.
        scales = P(*(None if n in self._reduced else axis for n, axis in enumerate(axes)))
        activation = NamedSharding(placed.mesh, P(*axes[: self.lead])) if self.static else None
        return Channeled(placed, NamedSharding(placed.mesh, scales), activation=activation)

    @property
    def _reduced(self) -> tuple[int, ...]:
        return tuple(range(self.lead, self.lead + self.inputs))
