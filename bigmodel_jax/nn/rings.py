"""Gathers and scattered sums along one mesh axis, by two short rings where one would be long."""

import math

import jax
import numpy as np

ONE_RING = 8  # devices over which a sum is cut in one go


def _rings(size: int) -> list:
    """Groups of an axis of `size` devices for its collectives: two rings, one after the other, with the bytes of one.

    For one long ring through a torus a TPU's compiler writes an all-reduce instead, of twice the bytes, after which every
    device holds the whole sum; a gather becomes an all-reduce of zeros and one piece.
    """
    inner = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0) if size > ONE_RING else 1
    index = np.arange(size).reshape(-1, inner)
    return [index.T.tolist(), index.tolist()] if inner > 1 else [None]


def scatter(x, axis: str, size: int):
    """The sum over a mesh axis, cut along dimension 0."""
    for groups in _rings(size):
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=0, axis_index_groups=groups, tiled=True)
    return x


def gather(x, axis: str, size: int):
    """The pieces of a mesh axis, one behind the other along dimension 1."""
    for groups in reversed(_rings(size)):
        x = jax.lax.all_gather(x, axis, axis=1, axis_index_groups=groups, tiled=True)
    return x
