"""Forms of a layer's stored weight that GPUs and TPUs read without making it dense in memory.

On a GPU the scales are a matrix (`flat_scales`). On a TPU an int8 weight has its inputs last
(`Transposed`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding, PartitionSpec

from bigmodel_jax.core.storage import Blocked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transposed(Blocked):
    """A weight (*inputs, *O, n) stored in int8 blocks along n.

    A block has one input, so its scale may multiply the rows of a product instead of the weight. A
    TPU does so inside the product, and reads the weight in 8 bits.

    - values: int8 (*O, blocks, block size, I), where I is the product of `inputs`
    - scales: bfloat16 (*O, blocks, I)
    """

    inputs: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        *outputs, blocks, size, _ = self.values.shape
        return (*self.inputs, *outputs, blocks * size)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dense(self, dtype: Any) -> jax.Array:
        w = self.values.astype(jnp.float32) * self.scales.astype(jnp.float32)[..., None, :]
        return jnp.moveaxis(w.astype(dtype), -1, 0).reshape(self.shape)

    def project(self, x: jax.Array) -> jax.Array:
        """x (..., *inputs) -> (..., *O, n)."""
        kept = x.shape[: x.ndim - len(self.inputs)]
        rows = x.reshape(math.prod(kept), -1)
        scaled = rows * self.scales.astype(x.dtype)[..., None, :]  # (*O, blocks, rows, I)
        y = jnp.matmul(scaled, self.values.swapaxes(-1, -2).astype(x.dtype))
        return rows_in_tiles(jnp.moveaxis(y, -2, 0).reshape(*kept, *self.shape[len(self.inputs) :]))


def rows_in_tiles(x: jax.Array) -> jax.Array:
    """x (B, 1, ...) with the rows of the batch beside each other in memory; other x unchanged.

    A tile of a TPU then holds 8 of them. It would hold one, and norms would take three times as
    long.
    """
    if x.ndim < 3 or x.shape[1] > 1:
        return x
    return with_layout_constraint(x, Layout((1, 0, *range(2, x.ndim))))


def flat_scales(node: Any, lead: int, num_inputs: int) -> Any:
    """The weight with scales (*lead, inputs, blocks of an input), where it is stored in blocks.

    lead: the number of leading dimensions, which count matrices. The leaves are arrays, or their
    shapes for a plan. The dense weight stays the same. Scales that are sharded along another
    dimension than the first input or the first output keep their form.

    Only in this form does XLA for GPUs make a weight of three dimensions inside the product that
    reads it. Otherwise it writes the dense weight to memory for each token.
    """
    if type(node) is not Blocked or node.scales is None:
        return node
    split, axes, shape = lead + num_inputs, _axes(node.scales), node.scales.shape
    if any(axes[lead + 1 : split]) or any(axes[split + 1 :]):
        return node
    flat = (*shape[:lead], math.prod(shape[lead:split]), math.prod(shape[split:]))
    scales = _made(lambda x: x.reshape(flat), node.scales, (*axes[:lead], axes[lead], axes[split]))
    return dataclasses.replace(node, scales=scales)


def transposed(node: Any, num_inputs: int) -> Any:
    """The weight of one layer as `Transposed`, where it is stored in int8 with bfloat16 scales.

    Other weights stay as they are, and so do those whose shards cut blocks, or whose second input
    dimension is sharded. The leaves are arrays, or their shapes for a plan.
    """
    if type(node) is not Blocked or node.kind != "int8" or node.scales.dtype != jnp.bfloat16:
        return node
    of_values, of_scales = _axes(node.values), _axes(node.scales)
    if of_values[-1] != of_scales[-1] or any(of_values[1:num_inputs]):
        return node
    blocks = node.scales.shape[-1]

    def turned(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(-1, *x.shape[num_inputs:-1], blocks, x.shape[-1] // blocks), 0, -1)

    outputs = of_values[num_inputs:]
    values = _made(turned, node.values, (*outputs, None, of_values[0]))
    scales = _made(lambda x: turned(x).squeeze(-2), node.scales, (*outputs, of_values[0]))
    return Transposed(values, scales, rows_in=node.rows_in, inputs=node.shape[:num_inputs])


def _axes(x: Any) -> tuple:
    """The mesh axes of each dimension."""
    return (*getattr(x.sharding, "spec", ()), *(None,) * x.ndim)[: x.ndim]


def _made(fn: Any, x: Any, axes: tuple) -> Any:
    """`fn(x)` with this sharding, as an array or a shape like x."""
    place = NamedSharding(x.sharding.mesh, PartitionSpec(*axes)) if isinstance(x.sharding, NamedSharding) else None
    if isinstance(x, jax.Array):
        return jax.device_put(fn(x), place) if place else fn(x)
    return jax.ShapeDtypeStruct(jax.eval_shape(fn, x).shape, x.dtype, sharding=place)
