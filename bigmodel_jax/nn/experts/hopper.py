"""Grouped products on NVIDIA's Hopper, each group of rows with its own matrix, by Pallas's kernels.

XLA has no grouped product on GPUs. It masks and multiplies all rows once per group, which costs as
many times the work and the memory as there are groups.

Shapes: N rows sorted by group, E groups, D in, F out.
"""

import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from bigmodel_jax.core import sharding

BLOCK = 128  # rows and columns of the block that one group of threads computes


def usable(rows_ND: jax.Array, w_EDF: jax.Array) -> bool:
    """Whether the traced program runs on Hopper, in whole bfloat16 blocks, without a pipeline."""
    mesh = sharding.current_mesh()
    if mesh is None or mesh.shape["stage"] > 1 or getattr(_device(mesh), "compute_capability", "") != "9.0":
        return False
    return rows_ND.dtype == w_EDF.dtype == jnp.bfloat16 and all(n % BLOCK == 0 for n in w_EDF.shape[1:])


def _device(mesh: jax.sharding.Mesh) -> jax.Device:
    return mesh.devices.flat[0]


@jax.jit
def grouped_product(rows_ND: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Returns (N, F): each row times the matrix of its group, 0 for rows beyond the last group.

    The FLOP count of a program finds this function by its name.
    """
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
    from jax.experimental.pallas.ops.gpu import ragged_dot_mgpu  # imported here, because the import takes half a second

    columns = w.shape[1 if transpose else 2]
    y = ragged_dot_mgpu.ragged_dot(rows, w, group_sizes=sizes, transpose_rhs=transpose, **_blocks(columns))
    # The kernel does not write the rows of no group, so their memory is undefined.
    return jnp.where(jnp.arange(len(rows))[:, None] < sizes.sum(), y, 0)


def _of_matrices(rows, dy, sizes):
    """Returns (E, D, F): the gradient of each group's matrix."""
    from jax.experimental.pallas.ops.gpu import transposed_ragged_dot_mgpu as kernels

    # The kernel asks the first local device for its processors, but the program may be compiled for
    # another device.
    there = types.SimpleNamespace(**vars(jax) | {"devices": lambda: [_device(sharding.current_mesh())]})
    with mock.patch.object(kernels, "jax", there):
        return kernels.transposed_ragged_dot(rows, dy, group_sizes=sizes, **_blocks(dy.shape[1]))


def _blocks(columns: int) -> dict[str, Any]:
    beside = 4 if columns % (4 * BLOCK) == 0 else 1  # neighbouring blocks of columns that share rows in the cache
    return {"block_m": BLOCK, "block_n": BLOCK, "block_k": 64, "max_concurrent_steps": 4, "grid_block_n": beside}
