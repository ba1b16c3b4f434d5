"""Integrated gradients (Sundararajan et al., arXiv:1703.01365), and how far their sum is from what it must be."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

STEPS, MOST_STEPS = 32, 2048
WITHIN = 0.01  # of the output difference
AT_ONCE = 8  # points of the path in one pass: one program, however many steps


class Attributions(NamedTuple):
    """values: in the shape of the input; steps: points on the path; total: their sum; difference: f(x) - f(baseline), which
    the total equals where the integral is exact (completeness, proposition 1)."""

    values: jax.Array
    steps: int
    total: float
    difference: float

    @property
    def error(self) -> float:
        """|total - difference| as a share of |difference|."""
        return abs(self.total - self.difference) / max(abs(self.difference), 1e-12)


def integrated_gradients(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, baseline: jax.Array, steps: int = STEPS
) -> jax.Array:
    """(x - baseline) times the mean gradient of f on the straight line between them (equation 1), in the shape of x.

    f: x -> (); a `jax.tree_util.Partial` keeps the arrays that it holds out of the compiled program. The integral is Gauss
    and Legendre's sum over `steps` points, as Captum's is by default; steps is a multiple of 8.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    blocks = zip(np.split((points + 1) / 2, steps // AT_ONCE), np.split(weights / 2, steps // AT_ONCE), strict=True)
    f, at = _with_arrays(f), functools.partial(jnp.asarray, dtype=x.dtype)
    return (x - baseline) * sum(_weighted(f, x, baseline, at(points), at(weights)) for points, weights in blocks)


def _with_arrays(f: Callable) -> Partial:
    """f as an argument of a compiled program. A Partial stays: one inside another would hide its arrays."""
    return f if isinstance(f, Partial) else Partial(f)


@jax.jit
def _weighted(f: Partial, x: jax.Array, baseline: jax.Array, points: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum of the gradients at some points of the path."""
    gradients = jax.vmap(lambda point: jax.grad(f)(baseline + point * (x - baseline)))(points)
    return jnp.tensordot(weights, gradients, axes=1)


def complete(
    f: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    baseline: jax.Array,
    *,
    within: float = WITHIN,
    most_steps: int = MOST_STEPS,
) -> Attributions:
    """`integrated_gradients` with twice as many steps, from 32 on, until their sum is the output difference `within` this
    share of it, or `most_steps` are reached."""
    f, value, steps = _with_arrays(f), jax.jit(lambda f, x: f(x)), STEPS
    difference = float(value(f, x) - value(f, baseline))
    while True:
        values = integrated_gradients(f, x, baseline, steps)
        found = Attributions(values, steps, float(values.sum()), difference)
        if found.error <= within or 2 * steps > most_steps:
            return found
        steps *= 2
