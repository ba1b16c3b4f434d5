"""Gathers and reduce-scatters along one mesh axis, by two short rings instead of a long one."""

import math

import jax
import numpy as np

ONE_RING = 8  # the most devices that form a single ring


def _rings(size: int) -> list:
    """The device groups of an axis of `size` devices: two rings, used one after the other.

    Two rings move as many bytes as one. For one long ring through a torus, a TPU's compiler writes
    an all-reduce instead, which moves twice the bytes and leaves the whole sum on every device. It
    turns a gather into an all-reduce of zeros and one piece.
    """
    inner = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0) if size > ONE_RING else 1
    index = np.arange(size).reshape(-1, inner)
    return [index.T.tolist(), index.tolist()] if inner > 1 else [None]


def scatter(x, axis: str, size: int):
    """The sum of x over a mesh axis, reduce-scattered along dimension 0."""
    # After the first ring a device holds one part, summed over its group. The second ring adds the
    # groups' sums of that part.
    for groups in _rings(size):
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=0, axis_index_groups=groups, tiled=True)
    return x


def gather(x, axis: str, size: int):
    """The pieces of x along a mesh axis, concatenated along dimension 1."""
    for groups in reversed(_rings(size)):
        x = jax.lax.all_gather(x, axis, axis=1, axis_index_groups=groups, tiled=True)
    return x
