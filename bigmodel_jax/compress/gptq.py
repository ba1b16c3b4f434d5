"""GPTQ: quantizes a weight one input at a time, and lets the remaining inputs compensate the error.

So the product's output on calibration rows changes least (Frantar et al., arXiv:2210.17323).
Shapes: I inputs, O outputs of a product. A block of weights with one scale lies along the outputs
of one input.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.storage import Blocked, Blocks

DAMPING = 0.01  # share of the mean diagonal of the Hessian that is added to the diagonal (section 4, step 3)
LAZY = 128  # inputs whose errors are passed on together (section 4, step 2)


class Padded(NamedTuple):
    """The factor U (I', I') and the weights (I', O), padded to a multiple of LAZY inputs."""

    u: np.ndarray
    w: jax.Array


def factor(hessian: np.ndarray) -> np.ndarray:
    """U, upper triangular (I, I) float32, for which U^T U is the inverse of the damped Hessian.

    hessian: (I, I), the sum of x x^T over all rows. An input that is 0 in all rows gets the mean
    diagonal entry, so its weights are rounded to the nearest level.
    """
    h = np.asarray(hessian, np.float64)
    # The mean is 1.0 for a product whose inputs are all zero.
    mean = np.mean(np.diag(h)) or 1.0
    h = h + np.diag(np.where(np.diag(h) == 0, mean, DAMPING * mean))
    # inv(H) = U^T U. If H reversed along both axes is L L^T, then U is the inverse of L, reversed
    # likewise.
    lower = np.linalg.cholesky(h[::-1, ::-1])
    return np.linalg.inv(lower)[::-1, ::-1].astype(np.float32)


def quantise(storage: Blocks, w: jax.Array, hessian: np.ndarray, num_in: int) -> Blocked:
    """The node of the weight (*I, *O), whose first `num_in` dimensions are inputs; hessian: (I,
    I)."""
    inputs = math.prod(w.shape[:num_in])
    # Padded rows have the identity in U, so they change nothing.
    more = -inputs % LAZY
    flat = jnp.pad(w.reshape(inputs, -1).astype(jnp.float32), ((0, more), (0, 0)))
    u = np.pad(factor(hessian), ((0, more), (0, more)))
    u[range(inputs, inputs + more), range(inputs, inputs + more)] = 1.0
    codes, scales = _sweep(storage, storage.block(w.shape[-1]), flat, jnp.asarray(u))
    size = codes.shape[-1]
    shape = (*w.shape[:-1], w.shape[-1] // size)
    return storage.packed(codes[:inputs].reshape(*shape, size), scales[:inputs].reshape(shape))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sweep(storage: Blocks, size: int, w: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantizes all inputs in order: (codes (I, O / size, size), scales (I, O / size))."""
    inputs, outputs = w.shape
    order = jnp.arange(inputs)

    def one(start, i, carry):
        part, errors, codes, scales = carry
        row = jax.lax.dynamic_index_in_dim(part, i, keepdims=False)
        blocks = row.reshape(-1, size)
        scale = storage.scales(blocks)
        code = storage.codes(blocks, scale)
        here = jax.lax.dynamic_slice(u, (start + i, start), (1, LAZY))[0]
        # The error, divided by the diagonal of U, is subtracted from the inputs that follow.
        error = (row - storage.values(code, scale).reshape(-1)) / here[i]
        part = part - jnp.where(jnp.arange(LAZY) > i, here, 0.0)[:, None] * error
        return part, errors.at[i].set(error), codes.at[i].set(code), scales.at[i].set(scale)

    def lazy(w, start):
        part = jax.lax.dynamic_slice(w, (start, 0), (LAZY, outputs))
        codes = jnp.zeros((LAZY, outputs // size, size), storage.codes(part[:1, None, :1], part[:1, :1]).dtype)
        begin = (part, jnp.zeros_like(part), codes, jnp.zeros((LAZY, outputs // size), jnp.float32))
        _, errors, codes, scales = jax.lax.fori_loop(0, LAZY, functools.partial(one, start), begin)
        rows = jax.lax.dynamic_slice(u, (start, 0), (LAZY, inputs))
        rows = jnp.where(order >= start + LAZY, rows, 0.0)
        # The errors of a whole block are passed on to all later blocks at once.
        return w - rows.T @ errors, (codes, scales)

    _, (codes, scales) = jax.lax.scan(lazy, w, jnp.arange(0, inputs, LAZY))
    return codes.reshape(inputs, -1, size), scales.reshape(inputs, -1)
