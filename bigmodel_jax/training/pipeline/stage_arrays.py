"""Operations on arrays whose dimension 0 is the pipeline stage. Nothing moves between stages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel_jax.nn.pipeline import by_stage, pin


def _local(fn: Callable, *args) -> jax.Array:
    """Applies `fn` to each stage's own part, so that indices that differ by stage stay local."""
    own = lambda *args: fn(*(a[0] for a in args))[None]  # noqa: E731
    return by_stage(own, P("stage"), P("stage"))(*args)


def take(slots: Any, at: jax.Array) -> Any:
    """Reads one slot per stage: (n, slots, ...) at indices (n,) -> (n, ...)."""
    return jax.tree.map(lambda a: _local(lambda a, i: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), a, at), slots)


def put(slots: Any, at: jax.Array, values: Any, valid: jax.Array) -> Any:
    """Writes values (n, ...) into slots (n, slots, ...) at indices (n,), where `valid` (n,)."""

    def one(a, i, value, valid):
        # A select costs one slot. A select between whole arrays would copy all slots.
        value = jnp.where(valid, value, jax.lax.dynamic_index_in_dim(a, i, keepdims=False))
        return jax.lax.dynamic_update_index_in_dim(a, value, i, 0)

    leaves = zip(jax.tree.leaves(slots), jax.tree.leaves(values), strict=True)
    return jax.tree.unflatten(jax.tree.structure(slots), [_local(one, a, at, value, valid) for a, value in leaves])


def add_at(slots: list, at: jax.Array, values: list) -> list:
    """Adds values (n, ...) to slots (n, slots, ...) at indices (n,)."""

    def one(a, i, value):
        value = value.astype(a.dtype) + jax.lax.dynamic_index_in_dim(a, i, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(a, value, i, 0)

    return [_local(one, a, at, value) for a, value in zip(slots, values, strict=True)]


def zeros(like: Any, more: tuple[int, ...] = (), *, slots: int = 0, dtype: Any = None) -> Any:
    """Zeros in the shapes of `like` (n, ...).

    `more` adds dimensions in front, and `slots` adds a second one: (n, slots, ...).
    """

    def one(a):
        shape = (*more, *a.shape)
        shape = (shape[0], slots, *shape[1:]) if slots else shape
        # A key array has no zeros, so it gets copies of one key.
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return pin(jnp.broadcast_to(jax.random.key(0, impl=jax.random.key_impl(a)), shape), 0)
        return pin(jnp.zeros(shape, dtype or a.dtype), 0)

    return jax.tree.map(one, like)


def to_homes(y: jax.Array, half: jax.Array, rounds: int) -> jax.Array:
    """Sends the outputs of one wave's layers to the devices that hold their microbatches.

    (n, 2 n r, l, ...), indexed by stage and by wave, microbatch and round, becomes (n, L, ...),
    indexed by microbatch and layer.
    """
    n = y.shape[0]
    y = jax.lax.dynamic_slice_in_dim(y, half * n * rounds, n * rounds, 1)
    y = jnp.moveaxis(y.reshape(n, n, rounds, *y.shape[2:]), 0, 2)
    return pin(y.reshape(n, -1, *y.shape[4:]), 0)


def from_homes(y: jax.Array, at_home: jax.Array, half: jax.Array, rounds: int) -> jax.Array:
    """The inverse of `to_homes`: (n, L, ...) into its half of (n, 2 n r, l, ...)."""
    n = y.shape[0]
    of_stage = jnp.moveaxis(at_home.reshape(n, rounds, n, -1, *at_home.shape[2:]), 2, 0)
    of_stage = pin(of_stage.reshape(n, n * rounds, *of_stage.shape[3:]), 0)
    return jax.lax.dynamic_update_slice_in_dim(y, of_stage, half * n * rounds, 1)
