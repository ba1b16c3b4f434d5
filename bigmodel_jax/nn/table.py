"""A sharded embedding table: its layout, and a lookup that does not move the table.

Shapes: B, T tokens of a device, D embed, V vocab, F devices along which the table's columns are
sharded.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding

LARGE = 2**25  # bytes up to which a table may be gathered for a lookup, however few rows are read


class Cut(NamedTuple):
    """The layout of tokens and a table (V, D); mesh None: one device.

    token_spec, table_spec: an entry per dimension. The properties give the mesh axes of size 2 or
    more that shard the tokens, the vocabulary and the columns.
    """

    mesh: Mesh | None
    token_spec: P
    table_spec: P

    @property
    def tokens(self) -> tuple[str, ...]:
        return self._axes(*self.token_spec)

    @property
    def vocab(self) -> tuple[str, ...]:
        return self._axes(self.table_spec[0])

    @property
    def embed(self) -> tuple[str, ...]:
        return self._axes(self.table_spec[1])

    def _axes(self, *entries) -> tuple[str, ...]:
        names = [a for axes in entries if axes for a in ((axes,) if isinstance(axes, str) else axes)]
        return tuple(a for a in names if self.mesh.shape[a] > 1)

    def size(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[a] for a in axes)

    def by_device(self, fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """`fn` on each device's own pieces."""
        if self.mesh is None:
            return fn
        return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def cut(token_shape: tuple[int, ...], table_shape: tuple[int, int]) -> Cut:
    """The layout of tokens (..., B, T) and a table in the step being traced."""
    mesh = sharding.current_mesh()
    if mesh is None or mesh.size == 1:
        return Cut(None, P(*(None,) * len(token_shape)), P(None, None))
    tokens = sharding.fitting_spec(token_shape, *(None,) * (len(token_shape) - 2), "batch", "seq")
    return Cut(mesh, tokens, sharding.fitting_spec(table_shape, "vocab", "embed"))


# ------------------------------------------------------------------------------------------- lookup


def exchange_is_cheaper(table: jax.Array, ids: jax.Array) -> bool:
    """Whether to exchange the rows found instead of gathering the table.

    It is cheaper if a device's part of the table is large and has more rows than the device has
    tokens.
    """
    if ids.ndim != 2:
        return False
    at = cut(ids.shape, table.shape)
    if not at.embed or not set(at.embed) <= set(at.tokens):
        return False
    rows, tokens = table.shape[0] // at.size(at.vocab), ids.size // at.size(at.tokens)
    return rows > tokens and rows * table.shape[1] * table.dtype.itemsize > LARGE


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Maps ids (B, T) -> (B, T, D) without gathering the table.

    Each device looks up its columns for the tokens of its whole group, and the devices exchange
    them. The gradient travels back the same way and is summed in float32, because a frequent
    token's gradient is a sum of thousands.
    """
    return _lookup(cut(ids.shape, table.shape), table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(at: Cut, table, ids):
    run = at.by_device(functools.partial(_read, at), (at.table_spec, at.token_spec), P(*at.token_spec, None))
    return run(table, ids)


def _forward(at: Cut, table, ids):
    return _lookup(at, table, ids), (table, ids)


def _backward(at: Cut, saved, dx):
    table, ids = saved
    add = functools.partial(_add, at, table.shape, table.dtype)
    return at.by_device(add, (at.token_spec, P(*at.token_spec, None)), at.table_spec)(ids, dx), None


_lookup.defvjp(_forward, _backward)


def _rows(at: Cut, ids, num_rows):
    """The group's ids (F, B, T) as rows of this device's part; num_rows for ids outside it."""
    ids = jax.lax.all_gather(ids, at.embed)
    ids = ids - (jax.lax.axis_index(at.vocab) * num_rows if at.vocab else 0)
    return jnp.where((ids >= 0) & (ids < num_rows), ids, num_rows)


def _read(at: Cut, table, ids):
    rows = _rows(at, ids, table.shape[0])
    found = jnp.take(table, rows, axis=0, mode="fill", fill_value=0)
    # Each device has its columns of the whole group's rows. The exchange gives it whole rows of its
    # own tokens.
    x = jax.lax.all_to_all(found, at.embed, split_axis=0, concat_axis=3, tiled=True)[0]
    # A row is 0 on every device that does not have it, so the sum is the row itself.
    return jax.lax.psum(x, at.vocab)


def _add(at: Cut, shape, dtype, ids, dx):
    num_rows, dim = shape[0] // at.size(at.vocab), shape[1] // at.size(at.embed)
    dx = jax.lax.all_to_all(dx[None], at.embed, split_axis=3, concat_axis=0, tiled=True)
    total = jnp.zeros((num_rows, dim), jnp.float32)
    # `_rows` gives num_rows for rows of other devices. That index is out of range and dropped.
    total = total.at[_rows(at, ids, num_rows)].add(dx.astype(jnp.float32), mode="drop")
    return jax.lax.psum(total, tuple(a for a in at.tokens if a not in at.embed)).astype(dtype)
