"""Expert parallelism: an all-to-all over `expert` sends tokens to their experts' devices and back.

GShard, arXiv:2006.16668; DeepSpeed-MoE, arXiv:2201.05596. The batch is sharded over the experts'
axis as well (`Rules.batch`), so that outside the experts no device repeats another's work.

Shapes: e devices of the axis, E experts, B batch, T tokens, C places per expert, D embed, k choices
per token, N rows that a device sends.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import axis_names, constrain


def axes(num_experts: int, num_rows: int) -> tuple[str, ...]:
    """The mesh axes that experts and batch share; () if no token has to travel."""
    mesh = sharding.current_mesh()
    if mesh is None:
        return ()
    experts = axis_names(sharding.fitting_spec((num_experts,), "experts")[0])
    shared = set(experts) <= set(axis_names(sharding.fitting_spec((num_rows,), "batch")[0]))
    return tuple(a for a in experts if mesh.shape[a] > 1) if shared else ()


def to_experts(x_EBCD: jax.Array) -> jax.Array:
    """Moves (E, B, C, D) from sharding along the batch to sharding along the experts."""
    travelling = axes(*x_EBCD.shape[:2])
    return constrain(_swap(x_EBCD, travelling, 0, 1), "experts", "batch", None, None)


def to_rows(x_EBCD: jax.Array) -> jax.Array:
    """The inverse of `to_experts`."""
    travelling = axes(*x_EBCD.shape[:2])
    return _swap(x_EBCD, travelling, 1, 0)


def _swap(x_EBCD, travelling, cut, joined):
    if not travelling:
        return x_EBCD
    batch = axis_names(sharding.fitting_spec(x_EBCD.shape[1:2], "batch")[0])
    by_batch, by_expert = P(None, batch), P(travelling, tuple(a for a in batch if a not in travelling))

    def exchange(x):
        return jax.lax.all_to_all(x, travelling, cut, joined, tiled=True)

    specs = (by_batch, by_expert) if cut == 0 else (by_expert, by_batch)
    mesh = sharding.current_mesh()
    return jax.shard_map(exchange, mesh=mesh, in_specs=specs[:1], out_specs=specs[1], check_vma=False)(x_EBCD)


def apply(
    products: Callable, x_BTD: jax.Array, chosen: jax.Array, E: int, axis: tuple[str, ...], buffer: float = 0.0
) -> jax.Array:
    """Returns (B, T, k, D): this device's tokens (B, T, D) through the experts chosen (B, T, k).

    It is called inside `shard_map`. E: the experts on each device. Rows are sorted by expert,
    travel, pass through `products(rows, expert of each, rows of each expert)`, and travel back.
    buffer: the rows that a device has room for, relative to an even share. Rows beyond that number,
    which come from the last devices, do not travel, and their result is 0. With 0 no row is
    dropped: a token's choices are different experts, so a device gets at most min(k, E) rows per
    token of all devices, and has room for all of them.
    """
    (B, T, D), k = x_BTD.shape, chosen.shape[-1]
    e, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    order = jnp.argsort(chosen.reshape(-1))  # sorted by expert, and therefore by device
    sizes = jnp.bincount(chosen.reshape(-1), length=e * E).astype(jnp.int32)
    from_to = jax.lax.all_gather(sizes.reshape(e, E), axis)  # (e, e, E)
    bound = B * T * min(k, E)
    length = min(e * bound, math.ceil(buffer * B * T * k)) if buffer else e * bound
    travel = from_to if length == e * bound else _first(from_to, length)
    sizes = travel.sum(-1)
    starts, ends = _starts(from_to.sum(-1), 1), _starts(sizes, 0)
    rows = send(x_BTD.reshape(B * T, D)[order // k], sizes, starts, ends, min(bound, length), length, axis)
    # The rows that arrived are sorted by device, and within a device by expert.
    came = travel[:, me]
    expert = jnp.repeat(jnp.tile(jnp.arange(E), e), came.reshape(-1), total_repeat_length=length)
    # Places without a row get the number E, so that they sort last.
    expert = jnp.where(jnp.arange(length) < came.sum(), expert, E)
    by_expert = jnp.argsort(expert)
    out = products(rows[by_expert], expert[by_expert], came.sum(0))
    out = send(out[jnp.argsort(by_expert)], sizes.T, ends.T, starts.T, min(bound, length), B * T * k, axis)
    return out[jnp.argsort(order)].reshape(B, T, k, D)


def _first(from_to: jax.Array, length: int) -> jax.Array:
    """The numbers of rows (e, e, E) that travel if every device takes only its first `length` rows.

    Entry (i, j, k) counts the rows from device i to expert k of device j.
    """
    e, _, E = from_to.shape
    arriving = from_to.swapaxes(0, 1).reshape(e, e * E)
    kept = jnp.minimum(jnp.cumsum(arriving, axis=1), length)
    return jnp.diff(kept, axis=1, prepend=0).reshape(e, e, E).swapaxes(0, 1)


def send(
    rows_ND: jax.Array,
    sizes: jax.Array,
    starts: jax.Array,
    ends: jax.Array,
    bound: int,
    length: int,
    axis: tuple[str, ...],
) -> jax.Array:
    """Sends this device's rows, sorted by destination, to their devices; inside `shard_map`.

    Returns (length, D), sorted by the device of origin, 0 where no row arrives. sizes: (e, e)
    int32, the number of rows from each device to each. starts, ends: (e, e), where the first of
    these rows lies, and where it arrives. bound: the most rows that a device sends to another.
    length: the most rows that a device receives.
    """
    me = jax.lax.axis_index(axis)
    mesh = sharding.current_mesh()
    if mesh.devices.flat[0].platform != "cpu":
        out = jnp.zeros((length, rows_ND.shape[1]), rows_ND.dtype)
        name = axis[0] if len(axis) == 1 else axis
        return jax.lax.ragged_all_to_all(rows_ND, out, starts[me], sizes[me], ends[me], sizes[:, me], axis_name=name)
    # XLA's CPU backend has no ragged all-to-all, so every pair of devices exchanges `bound` rows.
    place = jnp.arange(bound)
    padded = _rows(rows_ND, starts[me][:, None] + place, place < sizes[me][:, None])
    received = jax.lax.all_to_all(padded, axis, 0, 0, tiled=True)
    i = jnp.arange(length)
    peer = jnp.searchsorted(ends[:, me], i, side="right") - 1
    place = i - ends[peer, me]
    return _rows(received.reshape(-1, rows_ND.shape[1]), peer * bound + place, place < sizes[peer, me])


def _starts(sizes: jax.Array, dim: int) -> jax.Array:
    return jnp.cumsum(sizes, axis=dim) - sizes


def _rows(x_ND, numbers, present):
    """The rows of these numbers, 0 where `present` is False."""
    return jnp.where(present[..., None], x_ND[jnp.clip(numbers, 0, len(x_ND) - 1)], jnp.zeros((), x_ND.dtype))
