"""Gradient reduction in two stages for devices in several slices: `parallel.slice_gradients`.

Inside a slice the compiler sums in float32 over the fast links. Across slices, over the data-centre
network, the sums travel in bfloat16. This halves the bytes and rounds each slice's sum once to 8
bits of mantissa.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from bigmodel_jax.config import Config
from bigmodel_jax.core import sharding
from bigmodel_jax.core.precision import cast

SLICE = "slice"


def split_mesh(mesh: Mesh, slices: int) -> Mesh:
    """The same devices, with the axis `data` split into `slice` and `data` inside a slice."""
    at = mesh.axis_names.index("data")
    shape = mesh.devices.shape
    devices = mesh.devices.reshape(*shape[:at], slices, shape[at] // slices, *shape[at + 1 :])
    names = (*mesh.axis_names[:at], SLICE, *mesh.axis_names[at:])
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def gradients(config: Config, mesh: Mesh, specs: Any, one: Callable, compute, frozen, batch, rng, constants) -> tuple:
    """Calls `one` on each slice's rows and adds the results up over the slices.

    `one` is (compute, frozen, rows, rng, constants) -> (grads, mean, sums, frozen). Loss and
    metrics stay float32. Quantities over a batch, such as the balance of experts or batch
    statistics, are computed over one slice's rows.
    """
    inner = split_mesh(mesh, config.parallel.slices)

    def local(compute, frozen, batch, rng, constants):
        # Each slice draws its own dropout masks, because it sees other rows.
        rng = jax.random.fold_in(rng, jax.lax.axis_index(SLICE))
        with sharding.use(inner, config.parallel.rules, config.parallel):
            grads, mean, sums, frozen = one(compute, frozen, batch, rng, constants)
            # The barrier makes the compiler sum inside the slice before the rounding.
            grads = jax.lax.optimization_barrier(sharding.pin(grads, specs))
        return _across(grads, mesh), *jax.lax.psum((mean, sums), SLICE), jax.lax.pmean(frozen, SLICE)

    run = jax.shard_map(
        local,
        mesh=inner,
        in_specs=(P(), P(), P(SLICE), P(), P()),
        out_specs=P(),
        axis_names={SLICE},
        check_vma=False,
    )
    return run(compute, frozen, batch, rng, constants)


def _across(grads: Any, mesh: Mesh) -> Any:
    """The float32 sum over the slices, rounded to bfloat16 before and after."""
    if mesh.devices.flat[0].platform != "cpu":
        return cast(jax.lax.psum(cast(grads, "bfloat16"), SLICE), "float32")
    # XLA's CPU compiler crashes at a bfloat16 sum in a partly manual region, so the same values
    # travel in float32 there.
    rounded = jax.tree.map(lambda g: jax.lax.reduce_precision(g, exponent_bits=8, mantissa_bits=7), grads)
    summed = jax.lax.psum(rounded, SLICE)
    return jax.tree.map(lambda g: jax.lax.reduce_precision(g, exponent_bits=8, mantissa_bits=7), summed)
