"""How constant parameters are stored: as they are, in bfloat16, or in quantized blocks with scales.

A stored parameter is one node of the parameter tree: an array or a `Blocked`. Both keep the
parameter's leading dimensions, so that scans over stacked layers, pipelines and meshes slice them
alike. Products read a node through `project` of nn/linear.py. Other code calls `dense(node,
dtype)`.
"""

import dataclasses
import functools
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import dynamic8

Kind = Literal["int8", "int4", "nf4", "float8", "bfloat16"]
TOP = {"int8": 127, "int4": 7, "float8": 448}  # the largest code; float8 is e4m3 (arXiv:2209.05433)
PACKED = ("int4", "nf4")  # two codes in a byte
GROUP = 256  # scales that share one float32 number if the scales themselves are quantized

# The 16 levels of NF4, from quantiles of a normal distribution (QLoRA, arXiv:2305.14314, appendix
# E), as in bitsandbytes.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Storage(Protocol):
    """The interface of a storage.

    - check: raises ValueError if a parameter of this shape cannot be stored in this form
    - pack: the node for dense values `w`
    - shardings: the node's shardings, if a dense array of that shape had the sharding `placed`
    """

    def check(self, shape: tuple[int, ...]) -> None: ...
    def pack(self, w: jax.Array) -> Any: ...
    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Dense:
    """Stores a parameter as an array of its own shape and dtype."""

    def check(self, shape: tuple[int, ...]) -> None:
        pass

    def pack(self, w: jax.Array) -> jax.Array:
        return w

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
        return placed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocked:
    """One stored parameter of shape (..., n). L is its first dimension.

    - values: int8, float8 or bfloat16 (..., n); 4-bit kinds: uint8 (..., n / 2), where the lower
      bits hold the first half of a block
    - scales: float32, bfloat16 or uint8 codes (dynamic8.py), (..., n / block); None for bfloat16
    - groups: float32 (L, groups), the largest scale of each GROUP; None unless scales are codes
    - offset: float32 (L,), the mean subtracted from a layer's scales; None likewise
    - rows_in: dtype of rows looked up in a table; "" = float32
    - last: logical axis of the last dimension; "" = none, None = unknown
    """

    values: Any
    scales: Any
    groups: Any = None
    offset: Any = None
    kind: Kind = dataclasses.field(default="int8", metadata={"static": True})
    rows_in: str = dataclasses.field(default="", metadata={"static": True})
    last: str | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense parameter."""
        return (*self.values.shape[:-1], self.values.shape[-1] * (2 if self.kind in PACKED else 1))

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def dense(self, dtype: Any) -> jax.Array:
        """The values as a dense array (..., n), computed in float32 and cast to `dtype`."""
        if self.kind == "bfloat16":
            return self.values.astype(dtype)
        # An integer times a bfloat16 scale is exact in float32, so in bfloat16 it rounds the same.
        # That form alone is fused by a GPU into the product that reads the weight.
        exact = self.kind in ("int8", "int4") and self.scales.dtype == jnp.dtype(dtype) == jnp.bfloat16
        within = dtype if exact else jnp.float32
        return (self._numbers(within) * self._scales().astype(within)[..., None]).astype(dtype).reshape(self.shape)

    def rows(self, ids: jax.Array) -> jax.Array:
        """The rows `ids` (...) of a table (V, D), as an array (..., D)."""
        if self.groups is not None:  # quantized scales cannot be indexed by row
            return jnp.take(self.dense(self.rows_in or jnp.float32), ids, axis=0)
        found = jax.tree.map(lambda x: jnp.take(x, ids, axis=0), self)
        return found.dense(self.rows_in or jnp.float32)

    def _refuse(self, *_, **__):
        raise ValueError(
            f"a parameter of shape {self.shape} stored in {self.kind} was read as an array; read it through "
            "nn/linear.py project, or by core/storage.py dense(w, x.dtype), or store it as an array"
        )

    # Code that expects an array would use one of these first. Each raises a clear error.
    __jax_array__ = __getitem__ = astype = reshape = swapaxes = transpose = _refuse
    T = dtype = property(_refuse)

    def _numbers(self, dtype: Any) -> jax.Array:
        """The values (..., blocks, block size) before they are multiplied by scales."""
        blocks = _as_it_lies(self.values).reshape(*self.scales.shape, -1)
        if self.kind not in PACKED:
            return blocks.astype(dtype)
        codes = jnp.concatenate([blocks & 15, blocks >> 4], axis=-1)
        return _look_up(NF4, codes.astype(jnp.int32)) if self.kind == "nf4" else codes.astype(dtype) - 8

    def _scales(self) -> jax.Array:
        if self.groups is None:
            return self.scales.astype(jnp.float32)
        *lead, _ = self.groups.shape
        codes = self.scales.reshape(*lead, -1)
        groups = jnp.repeat(self.groups, GROUP, axis=-1)[..., : codes.shape[-1]]
        return (dynamic8.decode(codes) * groups + self.offset[..., None]).reshape(self.scales.shape)


def _as_it_lies(values: jax.Array) -> jax.Array:
    """The packed numbers in the layout of the argument.

    A TPU's compiler would choose a layout for unpacking, and copy the whole stack of layers.
    """
    if not isinstance(values, jax.core.Tracer):
        return values
    return with_layout_constraint(values, Layout(major_to_minor=tuple(range(values.ndim))))


def _look_up(table: tuple[float, ...], codes: jax.Array) -> jax.Array:
    """table[codes]: a gather on CPU, else selects, as TPUs gather single numbers slowly."""
    gather = functools.partial(jnp.take, jnp.asarray(table, jnp.float32), mode="clip")
    return jax.lax.platform_dependent(codes, cpu=gather, default=functools.partial(_select, table))


def _select(table: tuple[float, ...], codes: jax.Array) -> jax.Array:
    if len(table) == 1:
        return jnp.float32(table[0])
    half = len(table) // 2
    return jnp.where(codes & half > 0, _select(table[half:], codes), _select(table[:half], codes))


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Stores values in 8 or 4 bits with one scale per block of the last dimension.

    dtype: "int8" and "int4" are symmetric integers. The largest magnitude of a block gets the
    largest code. "float8" is e4m3, scaled likewise. "nf4" has the 16 levels of NormalFloat4, and
    its scale is the largest magnitude (QLoRA, arXiv:2305.14314). size: a block has at most so many
    values. The actual number is the largest that divides the dimension. double: store scales in 8
    bits after subtracting their mean in each layer, with one float32 per 256 scales ("double
    quantization"). narrow: store scales in bfloat16, and choose the codes for those.

    Codes equal those of bitsandbytes' `quantize_4bit` for equal blocks. Its blocks run along the
    inputs of a torch weight, and those here along the last dimension of (in, ..., out).
    """

    dtype: Literal["int8", "int4", "nf4", "float8"] = "int8"
    size: int = 64
    double: bool = False
    narrow: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}x{self.size}{'x8' if self.double else 'x16' if self.narrow else ''}"

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape or (self.dtype in PACKED and shape[-1] % 2):
            raise ValueError(f"storage: {self} of shape {shape}; its last dimension must be even, two values in a byte")

    def pack(self, w: jax.Array) -> Blocked:
        blocks = w.astype(jnp.float32).reshape(*w.shape[:-1], -1, self.block(w.shape[-1]))
        scales = self.scales(blocks)
        return self.packed(self.codes(blocks, scales), scales)

    def scales(self, blocks: jax.Array) -> jax.Array:
        """The scales, float32 (...), of blocks (..., block size)."""
        largest = jnp.max(jnp.abs(blocks), axis=-1)
        scales = largest if self.dtype == "nf4" else jnp.where(largest > 0, largest / TOP[self.dtype], 1.0)
        return scales.astype(jnp.bfloat16).astype(jnp.float32) if self.narrow else scales

    def codes(self, blocks: jax.Array, scales: jax.Array) -> jax.Array:
        """The code nearest to each value, in the shape of the blocks."""
        if self.dtype == "nf4":
            return _nearest(NF4, blocks, scales)
        top, share = TOP[self.dtype], blocks / scales[..., None]
        if self.dtype == "float8":
            return jnp.clip(share, -top, top).astype(jnp.float8_e4m3fn)
        return jnp.clip(jnp.round(share), -top, top).astype(jnp.int8)

    def values(self, codes: jax.Array, scales: jax.Array) -> jax.Array:
        """The float32 values that codes and scales represent."""
        numbers = jnp.asarray(NF4, jnp.float32)[codes] if self.dtype == "nf4" else codes.astype(jnp.float32)
        return numbers * scales[..., None]

    def packed(self, codes: jax.Array, scales: jax.Array) -> Blocked:
        """The node for codes (..., blocks, block size) and scales (..., blocks)."""
        if self.dtype in PACKED:
            low, high = jnp.split((codes + 8 if self.dtype == "int4" else codes).astype(jnp.uint8), 2, axis=-1)
            codes = low | (high << 4)
        return Blocked(codes.reshape(*scales.shape[:-1], -1), *self._doubled(scales), kind=self.dtype)

    def _doubled(self, scales: jax.Array) -> tuple[jax.Array, ...]:
        """(scales,) or, for double quantization, (codes of scales, groups, offset)."""
        if not self.double:
            return (scales.astype(jnp.bfloat16) if self.narrow else scales,)
        flat = scales.reshape(*scales.shape[:1], -1) if scales.ndim > 1 else scales
        offset = _mean(flat)
        flat = flat - offset[..., None]
        count = flat.shape[-1]
        flat = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, -count % GROUP)]).reshape(*flat.shape[:-1], -1, GROUP)
        groups = jnp.max(jnp.abs(flat), axis=-1)
        codes = _nearest(dynamic8.LEVELS, flat, groups)
        codes = codes.astype(jnp.uint8).reshape(*offset.shape, -1)[..., :count].reshape(scales.shape)
        return codes, groups, offset

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Blocked:
        lead = (*placed.spec, *(None,) * len(shape))[: len(shape) - 1]
        last = placed.spec[-1] if len(placed.spec) == len(shape) else None
        shards = shape[-1] // placed.shard_shape(shape)[-1]

        def of(n: int) -> NamedSharding:  # unsharded if the shards do not divide it
            return NamedSharding(placed.mesh, P(*lead, last if n % shards == 0 else None))

        values, scales = of(shape[-1] // (2 if self.dtype in PACKED else 1)), of(shape[-1] // self.block(shape[-1]))
        layers = NamedSharding(placed.mesh, P(*lead[:1]))
        return Blocked(values, scales, *((layers, layers) if self.double else ()), kind=self.dtype)

    def block(self, n: int) -> int:
        """The number of values in a block of a dimension of size n."""
        step = 2 if self.dtype in PACKED else 1
        return max(size for size in range(step, max(min(self.size, n), step) + 1, step) if n % size == 0)


def _mean(x: jax.Array) -> jax.Array:
    """The mean of nonnegative numbers along the last dimension, exact to 2^-24 of the largest.

    It sums integers, so its bits do not depend on the mesh. Up to 2^26 numbers do not overflow.
    """
    top = jnp.max(x, axis=-1)
    whole = jnp.round(x / jnp.where(top > 0, top, 1.0)[..., None] * 2.0**24).astype(jnp.uint32)
    parts = [((whole >> bits) & (127 if bits == 18 else 63)).sum(-1) for bits in (18, 12, 6, 0)]
    total = sum(part.astype(jnp.float32) * 2.0**bits for part, bits in zip(parts, (18, 12, 6, 0), strict=True))
    return total * (top / (x.shape[-1] * 2.0**24))


@dataclasses.dataclass(frozen=True)
class Half:
    """Stores bfloat16, which each layer casts, so only one layer's float32 copy exists."""

    def __str__(self) -> str:
        return "bfloat16, cast in the layer"

    def check(self, shape: tuple[int, ...]) -> None:
        pass

    def pack(self, w: jax.Array) -> Blocked:
        return Blocked(w.astype(jnp.bfloat16), None, kind="bfloat16")

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Blocked:
        return Blocked(placed, None, kind="bfloat16")


def dense(node: Any, dtype: Any) -> jax.Array:
    """A node as an array: blocks become dense in `dtype`. An array stays as it is."""
    return node.dense(dtype) if isinstance(node, Blocked) else node


def stored(x: Any) -> bool:
    """Whether x is a stored node and not an array; used as `is_leaf` in tree functions."""
    return isinstance(x, Blocked)


@functools.cache
def _bounds(levels: tuple[float, ...]) -> np.ndarray:
    table = np.asarray(levels, np.float32)
    return (table[1:] + table[:-1]) / np.float32(2)


def _nearest(levels: tuple[float, ...], x: jax.Array, largest: jax.Array) -> jax.Array:
    """The index of the level nearest to x / largest. Ties go to the lower level. largest: (...)."""
    share = jnp.clip(x * jnp.where(largest > 0, 1.0 / largest, 0.0)[..., None], -1.0, 1.0)
    return jnp.searchsorted(_bounds(levels), share, side="left")
