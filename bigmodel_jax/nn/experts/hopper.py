"""Products of groups of rows, each group with a matrix of its own, by Pallas's kernels for NVIDIA's Hopper.

XLA has none on its GPUs: it masks all rows for every group and multiplies them all, so many times the work as there are
groups, and as many copies of the rows in memory.

Shapes: N rows sorted by group, E groups, D in, F out.
"""

import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from bigmodel_jax.core import sharding

BLOCK = 128  # rows and columns of a product that one group of threads sums up


def usable(rows_ND: jax.Array, w_EDF: jax.Array) -> bool:
    """Whether what is being traced will run on Hopper, in whole blocks of bfloat16, and not under a pipeline's `vmap`."""
    mesh = sharding.current_mesh()
    if mesh is None or mesh.shape["stage"] > 1 or getattr(_device(mesh), "compute_capability", "") != "9.0":
        return False
    return rows_ND.dtype == w_EDF.dtype == jnp.bfloat16 and all(n % BLOCK == 0 for n in w_EDF.shape[1:])


def _device(mesh: jax.sharding.Mesh) -> jax.Device:
    return mesh.devices.flat[0]


@jax.jit
def grouped_product(rows_ND: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """(N, F): each row times the matrix of its group, 0 for rows past the last one. By this name FLOPs are counted."""
    return _product(rows_ND, w_EDF, sizes_E)


@jax.custom_vjp
def _product(rows, w, sizes):
    return _grouped(rows, w, sizes, transpose=False)


def _forward(rows, w, sizes):
    return _grouped(rows, w, sizes, transpose=False), (rows, w, sizes)


def _backward(saved, dy):
    rows, w, sizes = saved
    return _grouped(dy, w, sizes, transpose=True), _of_matrices(rows, dy, sizes), None


_product.defvjp(_forward, _backward)


def _grouped(rows, w, sizes, transpose: bool):
    from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu  # half a second to import, where it is used alone

    columns = w.shape[1 if transpose else 2]
    y = ragged_dot_mgpu.ragged_dot(rows, w, group_sizes=sizes, transpose_rhs=transpose, **_blocks(columns))
    # What no group has is left as the memory was.
    return jnp.where(jnp.arange(len(rows))[:, None] < sizes.sum(), y, 0)


def _of_matrices(rows, dy, sizes):
    """(E, D, F): what each group's rows give its matrix."""
    from jax.experimental.pallas.ops.gpu import transposed_ragged_dot_mgpu as kernels

    # It asks the first device that is here for its processors; a program may be compiled for one that is not.
    there = types.SimpleNamespace(**vars(jax) | {"devices": lambda: [_device(sharding.current_mesh())]})
    with mock.patch.object(kernels, "jax", there):
        return kernels.transposed_ragged_dot(rows, dy, group_sizes=sizes, **_blocks(dy.shape[1]))


def _blocks(columns: int) -> dict[str, Any]:
    beside = 4 if columns % (4 * BLOCK) == 0 else 1  # blocks of columns whose rows stay in the cache
    return {"block_m": BLOCK, "block_n": BLOCK, "block_k": 64, "max_concurrent_steps": 4, "grid_block_n": beside}
