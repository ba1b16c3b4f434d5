"""Integrated gradients (Sundararajan et al., arXiv:1703.01365), with a check of completeness."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

FIRST, POINTS = 4, 8  # stretches of the path at first; points of the Gauss-Legendre sum in each
MOST_STEPS = 2048
WITHIN = 0.01  # the completeness error that is accepted, as a share of the output difference


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
        return _relative(self.total, self.difference)


def _relative(total: float, difference: float) -> float:
    # The bound avoids 0 / 0 where input and baseline give the same output.
    return abs(total - difference) / max(abs(difference), 1e-12)


class _Stretch(NamedTuple):
    """A part of the path.

    - start, end: (share of the way to the input, f there)
    - values: the attributions of this part; total: their sum, which is exact if it equals the
      difference of f at both ends
    """

    start: tuple[float, float]
    end: tuple[float, float]
    values: jax.Array
    total: float

    @property
    def error(self) -> float:
        return abs(self.total - (self.end[1] - self.start[1]))


def complete(
    f: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    baseline: jax.Array,
    *,
    within: float = WITHIN,
    most_steps: int = MOST_STEPS,
    say: Callable[[str], None] = lambda _: None,
) -> Attributions:
    """Integrated gradients (equation 1) with enough points for completeness.

    The straight path from the baseline to x begins as 4 stretches of 8 points. The stretch with the
    largest error is halved until the error of the whole is at most `within` (a share of the output
    difference), or until another half would exceed `most_steps`.

    f: maps x to a scalar; as a `jax.tree_util.Partial` it can hold arrays without compiling them
    in.
    """
    # A Partial can be an argument of a jitted function. A Partial inside another one would hide its
    # arrays.
    f = f if isinstance(f, Partial) else Partial(f)
    ends = [(float(share), float(_value(f, x, baseline, float(share)))) for share in np.linspace(0, 1, FIRST + 1)]
    path = [_stretch(f, x, baseline, *pair) for pair in itertools.pairwise(ends)]
    difference = ends[-1][1] - ends[0][1]
    while _relative(sum(one.total for one in path), difference) > within and POINTS * (len(path) + 1) <= most_steps:
        say(f"Integrated gradients, {POINTS * len(path):,} points")
        worst = path.pop(max(range(len(path)), key=lambda n: path[n].error))
        share = (worst.start[0] + worst.end[0]) / 2
        middle = (share, float(_value(f, x, baseline, share)))
        path += [_stretch(f, x, baseline, *pair) for pair in ((worst.start, middle), (middle, worst.end))]
    values, total = sum(one.values for one in path), sum(one.total for one in path)
    return Attributions(values, POINTS * len(path), total, difference)


def _stretch(f: Partial, x: jax.Array, baseline: jax.Array, start: tuple, end: tuple) -> _Stretch:
    values, total = _integrated(f, x, baseline, start[0], end[0])
    return _Stretch(start, end, values, float(total))


@jax.jit
def _value(f: Partial, x: jax.Array, baseline: jax.Array, share: jax.Array) -> jax.Array:
    # In this form the shares 0 and 1 give exactly the baseline and x.
    return f((1 - share) * baseline + share * x)


@jax.jit
def _integrated(f: Partial, x: jax.Array, baseline: jax.Array, start: jax.Array, end: jax.Array):
    """(attributions of one stretch, their sum)."""
    nodes, weights = (jnp.asarray(part / 2, x.dtype) for part in np.polynomial.legendre.leggauss(POINTS))
    # The nodes are mapped from [-1/2, 1/2] to [start, end].
    shares = start + (end - start) * (nodes + 0.5)
    gradients = jax.vmap(lambda share: jax.grad(f)((1 - share) * baseline + share * x))(shares)
    values = (x - baseline) * (end - start) * jnp.tensordot(weights, gradients, axes=1)
    return values, values.sum()
