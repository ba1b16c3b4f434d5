"""Calls a function of one device's shards from a program that the compiler partitions."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

from bigmodel_jax.core import sharding


def run(fn: Callable, in_specs: tuple, out_specs: P, *args):
    """`fn(*args)` on every device's shards of the arguments; on a single device, `fn` itself.

    If some axes are manual already (a pipeline's stages), the others become manual here. The specs
    may still name all axes.
    """
    mesh = sharding.current_mesh()
    if mesh is None or mesh.size == 1:
        return fn(*args)
    context = jax.sharding.get_abstract_mesh()
    done = frozenset(context.manual_axes)
    if not done:
        return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)
    in_specs, out_specs = jax.tree.map(
        lambda spec: _without(spec, done), (in_specs, out_specs), is_leaf=lambda x: isinstance(x, P)
    )
    rest = frozenset(context.axis_names) - done
    return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, axis_names=rest, check_vma=False)(*args)


def _without(spec: P, axes: frozenset[str]) -> P:
    """The spec without these mesh axes."""
    return P(*(tuple(a for a in sharding.axis_names(dim) if a not in axes) or None for dim in spec))
