"""Finite scalar quantization (FSQ): each value of a vector is rounded to one of L levels, so that a
vector of Z values becomes one of L**Z codes (Mentzer et al., arXiv:2309.15505).

The codes are a fixed grid. A learned codebook (VQ-VAE, arXiv:1711.00937) needs losses of its own,
and a code that is nearest to no vector gets no gradient and stays unused: of the 512 codes of
configs/dvae_emoji.py, 50 were in use.

Shapes: Z values of a code, L levels of a value.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Quantized(NamedTuple):
    """codes (..., Z) float32 in -1 .. 1, with the gradient of the values before they were rounded;
    ids (...) int32: the numbers of these codes.
    """

    codes: jax.Array
    ids: jax.Array


def quantize(x: jax.Array, levels: int) -> Quantized:
    """Bounds the values of x (..., Z) by tanh, and rounds each to the nearest of evenly spaced
    levels from -1 to 1.
    """
    bounded = jnp.tanh(x.astype(jnp.float32))
    digits = jnp.round((bounded + 1) / 2 * (levels - 1))
    # The straight-through estimator (arXiv:1308.3432): the gradient ignores the rounding.
    codes = bounded + jax.lax.stop_gradient(_values(digits, levels) - bounded)
    ids = jnp.sum(digits.astype(jnp.int32) * _places(x.shape[-1], levels), axis=-1)
    return Quantized(codes, ids)


def codes_of(ids: jax.Array, levels: int, size: int) -> jax.Array:
    """Codes (..., size) float32 by their numbers (...)."""
    return _values((ids[..., None] // _places(size, levels) % levels).astype(jnp.float32), levels)


def _values(digits: jax.Array, levels: int) -> jax.Array:
    return digits * (2 / (levels - 1)) - 1


def _places(size: int, levels: int) -> np.ndarray:
    """What one level of each value adds to a code's number."""
    return levels ** np.arange(size, dtype=np.int32)
