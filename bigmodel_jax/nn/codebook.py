"""A codebook: each vector is replaced by the nearest of K learned codes (van den Oord et al.,
arXiv:1711.00937), which are compared by their angle (Yu et al., arXiv:2110.04627, section 3.2).

Vectors and codes are scaled to the same length before they are compared. Without that, a code that
is short or far from all vectors is never the nearest one, gets no gradient, and stays unused.

Shapes: K codes, Z values of a code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal


class Quantised(NamedTuple):
    """vectors (..., Z): the given vectors, at the length of a code; codes (..., Z): their nearest
    codes; ids (...) int32: the numbers of these codes.
    """

    vectors: jax.Array
    codes: jax.Array
    ids: jax.Array


def spec(num: int, dim: int) -> params.Tree:
    """{"table": (K, Z)}. Weight decay does not apply, because only a code's direction counts."""
    return {"table": Param((num, dim), (None, None), normal(1.0), decay=False)}


def scaled(x: jax.Array) -> jax.Array:
    """Vectors (..., Z) at the length sqrt(Z), float32, so that their values have a mean square
    of 1.
    """
    x = x.astype(jnp.float32)
    # 1e-12 keeps a vector of zeros finite.
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def codes_of(p: params.Tree, ids: jax.Array) -> jax.Array:
    """Looks up codes (..., Z) float32 by their numbers."""
    return scaled(p["table"])[ids]


def quantise(p: params.Tree, x: jax.Array) -> Quantised:
    """The nearest code of each vector (..., Z)."""
    vectors, table = scaled(x), scaled(p["table"])
    # At equal lengths, the nearest code has the largest dot product.
    ids = jnp.argmax(vectors @ table.T, axis=-1).astype(jnp.int32)
    return Quantised(vectors, table[ids], ids)


def straight_through(found: Quantised) -> jax.Array:
    """The codes (..., Z), whose gradient goes to the vectors as if they had not been replaced."""
    return found.vectors + jax.lax.stop_gradient(found.codes - found.vectors)
