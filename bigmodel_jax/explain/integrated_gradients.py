"""Integrated gradients (Sundararajan et al., arXiv:1703.01365), with a check of completeness."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

STEPS, MOST_STEPS = 32, 2048
WITHIN = 0.01  # the completeness error that is accepted, as a share of the output difference
AT_ONCE = 8  # points of the path per compiled pass, so that one program serves any number of steps


class Attributions(NamedTuple):
    """Attributions and their completeness (proposition 1).

    - values: the attributions, in the shape of the input; total: their sum
    - steps: number of points on the path
    - difference: f(x) - f(baseline), which the total would equal if the integral were exact
    """

    values: jax.Array
    steps: int
    total: float
    difference: float

    @property
    def error(self) -> float:
        """|total - difference| / |difference|."""
        # The bound avoids 0 / 0 where input and baseline give the same output.
        return abs(self.total - self.difference) / max(abs(self.difference), 1e-12)


def integrated_gradients(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, baseline: jax.Array, steps: int = STEPS
) -> jax.Array:
    """(x - baseline) times the mean gradient of f on the line between them, in the shape of x
    (equation 1).

    f: maps x to a scalar. As a `jax.tree_util.Partial` it can hold arrays without compiling them
    in. steps: the number of points of the Gauss-Legendre sum, which is Captum's default; a multiple
    of 8.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    # The nodes are mapped from [-1, 1] to [0, 1], so the weights are halved.
    blocks = zip(np.split((points + 1) / 2, steps // AT_ONCE), np.split(weights / 2, steps // AT_ONCE), strict=True)
    f, at = _with_arrays(f), functools.partial(jnp.asarray, dtype=x.dtype)
    return (x - baseline) * sum(_weighted(f, x, baseline, at(points), at(weights)) for points, weights in blocks)


def _with_arrays(f: Callable) -> Partial:
    """f as a Partial, so that it can be an argument of a jitted function.

    A Partial stays as it is, because a nested one would hide its arrays.
    """
    return f if isinstance(f, Partial) else Partial(f)


@jax.jit
def _weighted(f: Partial, x: jax.Array, baseline: jax.Array, points: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum of the gradients at these points of the path."""
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
    """Integrated gradients with enough steps for completeness.

    The steps are doubled, from 32 on, until the error is at most `within` (a share of the output
    difference), or until the next doubling would exceed `most_steps`.
    """
    f, value, steps = _with_arrays(f), jax.jit(lambda f, x: f(x)), STEPS
    difference = float(value(f, x) - value(f, baseline))
    while True:
        values = integrated_gradients(f, x, baseline, steps)
        found = Attributions(values, steps, float(values.sum()), difference)
        if found.error <= within or 2 * steps > most_steps:
            return found
        steps *= 2
