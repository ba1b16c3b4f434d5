"""How a constant parameter is stored: as it is, or as small integers with a scale for each block of them.

A stored parameter is one node of the parameter tree: an array, or a `Blocked`. Both keep the parameter's leading
dimensions, so that a scan over stacked layers, a pipeline and a mesh cut one like the other.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


class Storage(Protocol):
    """check: ValueError where parameters of this shape cannot be stored so. pack: the node of the values `w`.

    shardings: the node of shardings, where a plain array of that shape would lie as `placed` says.
    """

    def check(self, shape: tuple[int, ...]) -> None: ...
    def pack(self, w: jax.Array) -> Any: ...
    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Dense:
    """An array of the parameter's own shape and dtype."""

    def check(self, shape: tuple[int, ...]) -> None:
        pass

    def pack(self, w: jax.Array) -> jax.Array:
        return w

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
        return placed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocked:
    """values: int8 (..., n), or 4-bit numbers, two in each uint8 (..., n / 2); scales: float32 (..., n / block)."""

    values: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        *lead, n = self.values.shape
        return (*lead, n if self.values.dtype == jnp.int8 else 2 * n)

    def dense(self, dtype: Any) -> jax.Array:
        """The values as an array (..., n), computed in float32."""
        whole = self.values
        if whole.dtype != jnp.int8:
            pairs = jnp.stack([whole & 15, whole >> 4], axis=-1).astype(jnp.int8) - jnp.int8(8)
            whole = pairs.reshape(self.shape)
        scales = jnp.repeat(self.scales, self.shape[-1] // self.scales.shape[-1], axis=-1)
        return (whole.astype(jnp.float32) * scales).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Symmetric integers, the largest value of each block of the last dimension at their end.

    A block has at most `size` values: the largest number that divides the dimension.
    """

    dtype: Literal["int8", "int4"] = "int8"
    size: int = 64

    def __str__(self) -> str:
        return f"{self.dtype}x{self.size}"

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape or (self.dtype == "int4" and shape[-1] % 2):
            raise ValueError(f"storage: {self} of shape {shape}; its last dimension must be even, two values in a byte")

    def pack(self, w: jax.Array) -> Blocked:
        top = {"int8": 127, "int4": 7}[self.dtype]
        blocks = w.astype(jnp.float32).reshape(*w.shape[:-1], -1, self._block(w.shape[-1]))
        largest = jnp.max(jnp.abs(blocks), axis=-1)
        scales = jnp.where(largest > 0, largest / top, 1.0)
        whole = jnp.clip(jnp.round(blocks / scales[..., None]), -top, top).astype(jnp.int8).reshape(w.shape)
        if self.dtype == "int4":
            pairs = (whole + 8).astype(jnp.uint8).reshape(*w.shape[:-1], -1, 2)
            whole = pairs[..., 0] | (pairs[..., 1] << 4)
        return Blocked(whole, scales)

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Blocked:
        lead = (*placed.spec, *(None,) * len(shape))[: len(shape) - 1]
        last = placed.spec[-1] if len(placed.spec) == len(shape) else None
        shards = shape[-1] // placed.shard_shape(shape)[-1]

        def of(n: int) -> NamedSharding:  # a dimension that the axes do not divide stays whole
            return NamedSharding(placed.mesh, P(*lead, last if n % shards == 0 else None))

        return Blocked(of(shape[-1] // (2 if self.dtype == "int4" else 1)), of(shape[-1] // self._block(shape[-1])))

    def _block(self, n: int) -> int:
        return max(size for size in range(1, min(self.size, n) + 1) if n % size == 0)


def dense(node: Any, dtype: Any) -> jax.Array:
    """A stored parameter as an array: an array as it is, blocks in `dtype`."""
    return node.dense(dtype) if isinstance(node, Blocked) else node
