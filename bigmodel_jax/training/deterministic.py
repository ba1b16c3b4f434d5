"""Gradients summed in one fixed order on any number of devices: `parallel.deterministic`.

A sum of floats depends on its order, and the bits of a product on its shape. So the batch is split
into a fixed number of groups of consecutive rows. One device computes each group's gradient with
whole parameters, so the shapes are the same on every mesh. A binary tree adds the groups,
neighbours first. Each device adds the subtree of its own groups. The upper levels are added between
devices by recursive halving (Thakur et al., 2005, 10.1177/1094342005051521). In round b a device's
partner is the device whose number differs in bit b, so the exchanges form the upper levels of the
same tree.

This works for data parallelism, FSDP and both together. In the step each device holds whole
parameters, and as many whole gradients as its subtree has levels; FSDP shards the state between
steps. Tensor, sequence, expert and pipeline parallelism are not supported, because they add partial
sums inside the layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding


def gradients(
    config: Config, mesh: Mesh, specs: Any, constant_specs: Any, one: Callable, compute, frozen, batch, rng, constants
) -> tuple:
    """Calls `one` for every group and adds up the results in a fixed order.

    `one` is (compute, frozen, rows, rng, constants) -> (grads, mean, sums, frozen). `specs` are the
    PartitionSpecs of `compute` and of the returned gradients; `constant_specs` those of the
    constants. New statistics are the mean over the groups.
    """
    parallel = config.parallel
    axes = sharding.axis_names(parallel.rules.batch)
    local_groups = parallel.deterministic_groups // sharding.batch_shards(mesh, parallel.rules)
    # Each device traces a program for a single device: without sharding constraints, and with the
    # CPU forms on a CPU.
    alone = sharding.make_mesh(sharding.ParallelConfig(data=1), list(mesh.devices.flat[:1]))

    def local(compute, frozen, batch, rng, constants):
        whole, constants = jax.tree.map(gather, (compute, constants), (specs, constant_specs))
        pieces = jax.tree.map(lambda x: x.reshape(local_groups, -1, *x.shape[1:]), batch)
        # The group's global number seeds its random key, so draws do not depend on the mesh.
        first = jax.lax.axis_index(axes) * local_groups

        def group(i):
            rows = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), pieces)
            with sharding.use(alone, parallel.rules):
                return one(whole, frozen, rows, jax.random.fold_in(rng, first + i), constants)

        # The groups of a device are consecutive, so its sum is one subtree of the global tree.
        grads, *rest = tree_sum(group, local_groups)
        add = functools.partial(reduce, mesh=mesh, axes=axes)
        grads = jax.tree.map(add, grads, specs)
        mean, sums, frozen = jax.tree.map(lambda x: add(x, P()), tuple(rest))
        return grads, mean, sums, jax.tree.map(lambda x: x / parallel.deterministic_groups, frozen)

    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, P(), P(axes), P(), constant_specs),
        out_specs=(specs, P(), P(), P()),
        check_vma=False,
    )
    return run(compute, frozen, batch, rng, constants)


def tree_sum(leaf: Callable[[jax.Array], Any], n: int, start: jax.Array | int = 0) -> Any:
    """leaf(start) + ... + leaf(start + n - 1), added by a binary tree; n is a power of 2.

    Each level is a loop inside a loop, so that the program contains the leaf once, separate from
    the additions.
    """
    if n == 1:
        return leaf(start)
    half = n // 2
    both = jax.lax.map(lambda i: tree_sum(leaf, half, start + i * half), jnp.arange(2))
    return jax.tree.map(lambda x: x[0] + x[1], both)


# ---------------------------------------------------------------- between devices


def gather(x: jax.Array, spec: P) -> jax.Array:
    """The whole array of a shard; called inside shard_map."""
    for dim, axes in enumerate(spec):
        x = jax.lax.all_gather(x, axes, axis=dim, tiled=True) if axes else x
    return x


def reduce(x: jax.Array, spec: P, *, mesh: Mesh, axes: tuple[str, ...]) -> jax.Array:
    """Sums x over `axes` and returns the shard that `spec` keeps on this device.

    The last axis numbers neighbouring devices, so it is summed first.
    """
    for axis in reversed(axes):
        n = mesh.shape[axis]
        dim = next((d for d, names in enumerate(spec) if axis in sharding.axis_names(names)), None)
        if n > 1:
            x = all_reduce(x, axis, n) if dim is None else reduce_scatter(x, axis, n, dim)
    return x


def reduce_scatter(x: jax.Array, axis: str, n: int, dim: int = 0) -> jax.Array:
    """This device's block, along `dim`, of the sum over `axis`.

    There are log2(n) rounds. In each a device sends half of what it still holds to its partner.
    """
    bits = n.bit_length() - 1
    x = jnp.moveaxis(x, dim, 0)
    x = x.reshape(*(2,) * bits, x.shape[0] // n, *x.shape[1:])  # the block's number in binary, highest bit first
    here = jax.lax.axis_index(axis)
    # Round b keeps the half of x whose block numbers agree with this device's in bit b.
    for bit in range(bits):
        mine, at = (here >> bit) & 1, bits - 1 - bit
        keep = jax.lax.dynamic_index_in_dim(x, mine, at, keepdims=False)
        give = jax.lax.dynamic_index_in_dim(x, 1 - mine, at, keepdims=False)
        x = keep + jax.lax.ppermute(give, axis, [(i, i ^ (1 << bit)) for i in range(n)])
    return jnp.moveaxis(x, 0, dim)


def all_reduce(x: jax.Array, axis: str, n: int) -> jax.Array:
    """The whole sum over `axis`, on every device."""
    # The padding makes the length a multiple of n, so that every device reduces an equal block.
    flat = jnp.pad(x.reshape(-1), (0, -x.size % n))
    return jax.lax.all_gather(reduce_scatter(flat, axis, n), axis, tiled=True)[: x.size].reshape(x.shape)


# ---------------------------------------------------------------- norm


def norm(config: Config, mesh: Mesh, spec: params.Tree, specs: Any, grads: Any) -> jax.Array:
    """The global gradient norm, from sums that do not depend on how the gradients are sharded.

    The squares are folded along all dimensions except the one that FSDP would shard. The sums along
    that dimension are gathered, so that every device folds the same vector on every mesh.
    """
    batch_axes = {"data", "fsdp"}  # the other axes have size 1, and the choice must be the same on every mesh

    def kept(p: params.Param) -> int:
        cut = [d for d, a in enumerate(sharding.partition_spec(p.axes, config.parallel.rules)) if _on(a, batch_axes)]
        return cut[0] if cut else 0

    dims = params.map_spec(kept, params.partition(spec, spec)[0])

    def local(grads):
        def squares(g, where, dim):
            # The barriers keep the compiler from fusing this product with the operations around it,
            # for example into a multiply-add.
            x = jax.lax.optimization_barrier(jnp.square(jax.lax.optimization_barrier(g)))
            for d in range(g.ndim):
                x = x if d == dim else fold(x, d)
            x = gather(x, P(*(axes if d == dim else None for d, axes in enumerate(where))))
            return fold(x, dim).reshape(()) if g.ndim else x

        return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(squares, grads, specs, dims))))

    return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=P(), check_vma=False)(grads)


def fold(x: jax.Array, dim: int) -> jax.Array:
    """Sums x along `dim` by adding halves. The dimension stays, with size 1.

    Compilers may change the order of a reduction, but not that of element-wise additions.
    """
    while (n := x.shape[dim]) > 1:
        low, high = (jax.lax.slice_in_dim(x, *bounds, axis=dim) for bounds in ((0, (n + 1) // 2), ((n + 1) // 2, n)))
        x = low + jnp.pad(high, [(0, n % 2 if d == dim else 0) for d in range(x.ndim)])
    return x


def _on(axes: sharding.MeshAxes, wanted: set[str]) -> bool:
    return bool(set(sharding.axis_names(axes)) & wanted)
