"""How a constant parameter is stored: as it is, in bfloat16, or as small numbers with a scale for each block of them.

A stored parameter is one node of the parameter tree: an array, or a `Blocked`. Both keep the parameter's leading
dimensions, so that a scan over stacked layers, a pipeline and a mesh cut one like the other. A product reads a node
through nn/linear.py `project`; other code asks for `dense(node, dtype)`.
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
TOP = {"int8": 127, "int4": 7, "float8": 448}  # the largest number; float8 is e4m3 (arXiv:2209.05433)
PACKED = ("int4", "nf4")  # two in a byte
GROUP = 256  # scales that share one number where scales are quantised themselves

# The quantiles of a normal distribution, 4 bits: NF4 of QLoRA (arXiv:2305.14314, appendix E), as bitsandbytes has them.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


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
    """One stored parameter of shape (..., n).

    values: int8 or float8 (..., n); or two 4-bit numbers in each uint8 (..., n / 2), those of a block's first half in the
    lower bits; or bfloat16 (..., n). scales: float32 or bfloat16 (..., n / block), or their codes, uint8 (dynamic8.py);
    None for bfloat16. groups: float32 (L, number of groups), the largest scale of each GROUP of one layer's scales, and
    offset: float32 (L,), the mean that was taken from a layer's scales; both only where `scales` are codes. L is the first
    dimension. rows_in: the dtype of single rows that are looked up in it; "" = float32.
    """

    values: Any
    scales: Any
    groups: Any = None
    offset: Any = None
    kind: Kind = dataclasses.field(default="int8", metadata={"static": True})
    rows_in: str = dataclasses.field(default="", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        *lead, n = self.values.shape
        return (*lead, 2 * n if self.kind in PACKED else n)

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def dense(self, dtype: Any) -> jax.Array:
        """The values as an array (..., n), computed in float32."""
        if self.kind == "bfloat16":
            return self.values.astype(dtype)
        blocks = self._numbers() * self._scales()[..., None]
        return blocks.astype(dtype).reshape(self.shape)

    def rows(self, ids: jax.Array) -> jax.Array:
        """The rows `ids` (...) of a table (V, D): (..., D)."""
        if self.groups is not None:  # which are no rows
            return jnp.take(self.dense(self.rows_in or jnp.float32), ids, axis=0)
        found = jax.tree.map(lambda x: jnp.take(x, ids, axis=0), self)
        return found.dense(self.rows_in or jnp.float32)

    def _refuse(self, *_, **__):
        raise ValueError(
            f"a parameter of shape {self.shape} stored in {self.kind} was read as an array; read it through "
            "nn/linear.py project, or by core/storage.py dense(w, x.dtype), or do not store it so"
        )

    # What code that expects an array asks first.
    __jax_array__ = __getitem__ = astype = reshape = swapaxes = transpose = _refuse
    T = dtype = property(_refuse)

    def _numbers(self) -> jax.Array:
        """(..., blocks, values of one), without their scales."""
        blocks = _as_it_lies(self.values).reshape(*self.scales.shape, -1)
        if self.kind not in PACKED:
            return blocks.astype(jnp.float32)
        codes = jnp.concatenate([blocks & 15, blocks >> 4], axis=-1).astype(jnp.int32)
        return _look_up(NF4, codes) if self.kind == "nf4" else (codes - 8).astype(jnp.float32)

    def _scales(self) -> jax.Array:
        if self.groups is None:
            return self.scales.astype(jnp.float32)
        *lead, _ = self.groups.shape
        codes = self.scales.reshape(*lead, -1)
        groups = jnp.repeat(self.groups, GROUP, axis=-1)[..., : codes.shape[-1]]
        return (dynamic8.decode(codes) * groups + self.offset[..., None]).reshape(self.scales.shape)


def _as_it_lies(values: jax.Array) -> jax.Array:
    """The packed numbers in the layout of the argument.

    Without this a TPU's compiler chooses the layout that unpacking likes for the whole stack of layers, and copies it.
    """
    if not isinstance(values, jax.core.Tracer):
        return values
    return with_layout_constraint(values, Layout(major_to_minor=tuple(range(values.ndim))))


def _look_up(table: tuple[float, ...], codes: jax.Array) -> jax.Array:
    """table[codes]: a gather on a CPU; elsewhere selects, bit by bit, since a TPU gathers single numbers very slowly."""
    gather = functools.partial(jnp.take, jnp.asarray(table, jnp.float32), mode="clip")
    return jax.lax.platform_dependent(codes, cpu=gather, default=functools.partial(_select, table))


def _select(table: tuple[float, ...], codes: jax.Array) -> jax.Array:
    if len(table) == 1:
        return jnp.float32(table[0])
    half = len(table) // 2
    return jnp.where(codes & half > 0, _select(table[half:], codes), _select(table[:half], codes))


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Numbers of 8 or 4 bits with one scale for each block of the last dimension.

    dtype: "int8" and "int4" are symmetric integers, the largest value of a block at their end; "nf4" are the 16 levels
    of NormalFloat4, whose scale is the largest magnitude of a block (QLoRA, arXiv:2305.14314). A block has at most
    `size` values: the largest number that divides the dimension. double: the scales are kept in 8 bits, less their mean
    in each layer, with one float32 for each 256 of a layer ("double quantisation"). narrow: the scales are bfloat16, and
    the codes those that are nearest by such a scale. "float8" is e4m3, whose largest number is that of a block.

    Codes are those of bitsandbytes' `quantize_4bit` for the same blocks. Its blocks run through a torch weight (out, in)
    in flat order, along the inputs of one output; these run along the last dimension of (in, ..., out).
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
        """Those of blocks (..., values of one), float32 (...)."""
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
        """What codes and scales stand for, float32."""
        numbers = jnp.asarray(NF4, jnp.float32)[codes] if self.dtype == "nf4" else codes.astype(jnp.float32)
        return numbers * scales[..., None]

    def packed(self, codes: jax.Array, scales: jax.Array) -> Blocked:
        """The node of codes (..., blocks, values of one) and their scales (..., blocks)."""
        if self.dtype in PACKED:
            low, high = jnp.split((codes + 8 if self.dtype == "int4" else codes).astype(jnp.uint8), 2, axis=-1)
            codes = low | (high << 4)
        return Blocked(codes.reshape(*scales.shape[:-1], -1), *self._doubled(scales), kind=self.dtype)

    def _doubled(self, scales: jax.Array) -> tuple[jax.Array, ...]:
        """(scales,), or (codes, groups, offset)."""
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

        def of(n: int) -> NamedSharding:  # a dimension that the axes do not divide stays whole
            return NamedSharding(placed.mesh, P(*lead, last if n % shards == 0 else None))

        values, scales = of(shape[-1] // (2 if self.dtype in PACKED else 1)), of(shape[-1] // self.block(shape[-1]))
        layers = NamedSharding(placed.mesh, P(*lead[:1]))
        return Blocked(values, scales, *((layers, layers) if self.double else ()), kind=self.dtype)

    def block(self, n: int) -> int:
        """Values of one block of a dimension of n."""
        step = 2 if self.dtype in PACKED else 1
        return max(size for size in range(step, max(min(self.size, n), step) + 1, step) if n % size == 0)


def _mean(x: jax.Array) -> jax.Array:
    """The mean of numbers of 0 or more along the last dimension, to 2^-24 of the largest.

    It is a sum of whole numbers, whose bits do not depend on the mesh that adds them up; up to 2^26 of them do not overflow.
    """
    top = jnp.max(x, axis=-1)
    whole = jnp.round(x / jnp.where(top > 0, top, 1.0)[..., None] * 2.0**24).astype(jnp.uint32)
    parts = [((whole >> bits) & (127 if bits == 18 else 63)).sum(-1) for bits in (18, 12, 6, 0)]
    total = sum(part.astype(jnp.float32) * 2.0**bits for part, bits in zip(parts, (18, 12, 6, 0), strict=True))
    return total * (top / (x.shape[-1] * 2.0**24))


@dataclasses.dataclass(frozen=True)
class Half:
    """bfloat16 until a layer reads it: a step in float32 then holds one layer's float32 copy, and not the stack's."""

    def __str__(self) -> str:
        return "bfloat16, cast in the layer"

    def check(self, shape: tuple[int, ...]) -> None:
        pass

    def pack(self, w: jax.Array) -> Blocked:
        return Blocked(w.astype(jnp.bfloat16), None, kind="bfloat16")

    def shardings(self, placed: NamedSharding, shape: tuple[int, ...]) -> Blocked:
        return Blocked(placed, None, kind="bfloat16")


def dense(node: Any, dtype: Any) -> jax.Array:
    """A stored parameter as an array: an array as it is, blocks in `dtype`."""
    return node.dense(dtype) if isinstance(node, Blocked) else node


def stored(x: Any) -> bool:
    """Whether x is a node that is no array; `is_leaf` of the walks that must not look into one."""
    return isinstance(x, Blocked)


@functools.cache
def _bounds(levels: tuple[float, ...]) -> np.ndarray:
    table = np.asarray(levels, np.float32)
    return (table[1:] + table[:-1]) / np.float32(2)


def _nearest(levels: tuple[float, ...], x: jax.Array, largest: jax.Array) -> jax.Array:
    """The index of the level nearest to x / largest, of the lower one where two are as near; largest: (..., 1) less."""
    share = jnp.clip(x * jnp.where(largest > 0, 1.0 / largest, 0.0)[..., None], -1.0, 1.0)
    return jnp.searchsorted(_bounds(levels), share, side="left")
