"""The scaling law of a family of runs: loss = E + A / N^alpha + B / D^beta for N parameters, D
tokens.

Form and fit are Chinchilla's third approach (Hoffmann et al., arXiv:2203.15556, equations 2 and 3):
L-BFGS minimizes the Huber loss of differences of log losses, from a grid of starts. Besiroglu et
al. (arXiv:2404.10102) showed that L-BFGS stops too early with a mean instead of the sum. Here the
sum is divided by the Huber loss's scale, and ln N and ln D are centred.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

DELTA = 1e-3  # the error at which the Huber loss turns from quadratic to linear
TOGETHER = 0.999  # correlation of ln N and ln D above which their effects cannot be told apart
STARTS = 6  # number of best grid points from which L-BFGS starts
FLOPS = 6.0  # FLOPs per parameter and token (Kaplan et al., arXiv:2001.08361)
LEVEL = 0.95  # probability of the intervals


class Law(NamedTuple):
    """The five coefficients of a law. The loss has the unit of the points."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N, D):
        return self.E + self.A / np.asarray(N, float) ** self.alpha + self.B / np.asarray(D, float) ** self.beta

    def optimum(self, compute):
        """(N, D) of the lowest loss for `compute` FLOPs, 6 N D (equation 4)."""
        # At the optimum the derivatives of both terms balance.
        ratio = self.alpha * self.A / (self.beta * self.B)
        N = ratio ** (1 / (self.alpha + self.beta)) * (compute / FLOPS) ** (self.beta / (self.alpha + self.beta))
        return N, compute / FLOPS / N


class Points(NamedTuple):
    """Parameters, tokens and loss of each run, as three arrays."""

    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray

    def some(self, index: np.ndarray) -> "Points":
        return Points(self.N[index], self.D[index], self.loss[index])


def check(points: Points) -> None:
    """Raises ValueError, one line, if the points do not determine a law."""
    different = {"sizes of model": len(set(points.N)), "numbers of tokens": len(set(points.D))}
    for what, count in different.items():
        if count < 3:
            raise ValueError(f"scale --law: the runs have {count} different {what}; a law needs 3 or more of each")
    if len(points.N) < 6:
        raise ValueError(f"scale --law: {len(points.N)} runs; five coefficients need 6 or more")
    # Where D is a power of N, any share of the loss could be due to either of them.
    if np.corrcoef(np.log(points.N), np.log(points.D))[0, 1] > TOGETHER:
        raise ValueError(
            "scale --law: the runs' tokens grow with their sizes; give sizes with several numbers of tokens"
        )


def fit(points: Points) -> Law:
    """The law that fits these points best."""
    centre = np.log(points.N).mean(), np.log(points.D).mean()
    return _law(min(_descents(points, centre, _starts(points, centre)), key=lambda found: found.fun).x, centre)


def bootstrap(points: Points, law: Law, count: int, seed: int = 0) -> list[Law]:
    """The laws of `count` bootstrap samples of the points.

    Each fit starts from the law of all points.
    """
    rng, laws = np.random.default_rng(seed), []
    centre = np.log(points.N).mean(), np.log(points.D).mean()
    start = _coefficients(law, centre)
    for _ in range(count):
        sample = points.some(rng.integers(0, len(points.N), len(points.N)))
        laws.append(_law(_descents(sample, centre, [start], maxiter=300)[0].x, centre))
    return laws


def interval(values) -> tuple[float, float]:
    """The central `LEVEL` interval of these values."""
    low, high = np.quantile(np.asarray(values, float), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# -------------------------------------------------------------------------------------- the descent


def _descents(points: Points, centre: tuple[float, float], starts, maxiter: int = 1000):
    x, y, target = np.log(points.N) - centre[0], np.log(points.D) - centre[1], np.log(points.loss)
    # Centred logarithms make amplitudes and exponents less dependent on each other, so that the
    # descent
    options = {"maxiter": maxiter, "ftol": 1e-11, "gtol": 1e-8}
    return [minimize(_objective, at, (x, y, target), "L-BFGS-B", jac=True, options=options) for at in starts]


def _objective(at: np.ndarray, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """(Huber loss / DELTA, gradient) at the centred coefficients a, b, e, alpha, beta."""
    a, b, e, alpha, beta = at
    terms = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
    predicted = np.logaddexp.reduce(terms)
    share = np.exp(terms - predicted)
    error = predicted - target
    # Huber loss divided by DELTA: quadratic inside, linear outside.
    small = np.abs(error) <= DELTA
    value = np.where(small, error**2 / (2 * DELTA), np.abs(error) - DELTA / 2).sum()
    slope = np.where(small, error / DELTA, np.sign(error))
    pulls = share * slope
    return value, np.array([*pulls.sum(axis=1), -(pulls[0] * x).sum(), -(pulls[1] * y).sum()])


def _starts(points: Points, centre: tuple[float, float]) -> list[np.ndarray]:
    """The best points of a grid: each term is a share of the median loss, exponents are 0.1 to
    2."""
    typical, shares, exponents = (
        np.log(np.median(points.loss)),
        np.log([0.05, 0.2, 0.5, 0.8]),
        (0.1, 0.3, 0.6, 1.0, 2.0),
    )
    terms = [typical + share for share in shares]
    grid = [np.array(at) for at in itertools.product(terms, terms, terms, exponents, exponents)]
    x, y, target = np.log(points.N) - centre[0], np.log(points.D) - centre[1], np.log(points.loss)
    # L-BFGS may end in a local minimum, so it starts from several points.
    return sorted(grid, key=lambda at: _objective(at, x, y, target)[0])[:STARTS]


def _law(at: np.ndarray, centre: tuple[float, float]) -> Law:
    a, b, e, alpha, beta = map(float, at)
    with np.errstate(over="ignore"):
        # An extreme fit may have an amplitude beyond the range of float64.
        A, B = np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1])
    return Law(float(np.exp(e)), float(A), float(B), alpha, beta)


def _coefficients(law: Law, centre: tuple[float, float]) -> np.ndarray:
    a, b = np.log(law.A) - law.alpha * centre[0], np.log(law.B) - law.beta * centre[1]
    return np.array([a, b, np.log(law.E), law.alpha, law.beta])
