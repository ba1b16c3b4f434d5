"""Greedy soup: a member joins the mean of the weights if a validation metric does not get worse.

Source: Wortsman et al., arXiv:2203.05482, algorithm 1. The soup's own metric has selected its
members, so it does not estimate the metric on other data.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bigmodel_jax.core.params import Tree
from bigmodel_jax.ensemble.averages import Total, total_of


class Tried(NamedTuple):
    """One member's trial; alone: its own metric; value: the metric of the soup with it; kept: the
    outcome."""

    number: int
    alone: float
    value: float
    kept: bool


class Soup(NamedTuple):
    """A soup; weights: merged parameters; scalars: its evaluation; order: all trials in their
    order."""

    weights: Tree
    scalars: dict[str, Any]
    order: tuple[Tried, ...]


def greedy(
    load: Callable[[int], Tree],
    alone: Sequence[dict[str, Any]],
    spec: Tree,
    finish: Callable[[Tree], Tree],
    judge: Callable[[Tree], dict[str, Any]],
    key: str,
    more_is_better: bool,
) -> Soup:
    """The greedy soup of members 0, 1, .... Its scalar `key` is no worse than the best member's.

    - load: returns the merged parameters of a member
    - alone: the scalars of each member
    - finish: makes averaged weights ready for evaluation (recomputes statistics)
    - judge: returns the scalars of weights
    """
    sign = 1.0 if more_is_better else -1.0
    # The best member is tried first, so the soup starts at its metric.
    # Members whose metric is NaN are tried last. Sorting by NaN itself would leave them anywhere.
    ranked = sorted(range(len(alone)), key=lambda i: (math.isnan(alone[i][key]), -sign * alone[i][key]))
    first = ranked[0]
    weights, scalars = load(first), alone[first]
    total: Total = total_of(weights, spec)
    order = [Tried(first, scalars[key], scalars[key], True)]
    for number in ranked[1:]:
        # The float64 sum is carried on, so the means' rounding to float32 does not add up.
        candidate = total.add(load(number), spec)
        # Statistics of a batch norm must fit the averaged weights before these are judged.
        mean = finish(candidate.mean())
        found = judge(mean)
        kept = sign * found[key] >= sign * scalars[key]  # false for a metric that is NaN
        order.append(Tried(number, alone[number][key], found[key], kept))
        if kept:
            weights, scalars, total = mean, found, candidate
    return Soup(weights, scalars, tuple(order))
