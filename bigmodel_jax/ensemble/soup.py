"""Greedy soup: members join the mean of the weights as long as a validation metric does not fall.

Wortsman et al., arXiv:2203.05482, algorithm 1. The metric of the soup was used to choose its members: it is no estimate of
the metric on other data.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bigmodel_jax.core.params import Tree
from bigmodel_jax.ensemble.averages import Total, total_of


class Tried(NamedTuple):
    """One member's turn. alone: its own metric; value: that of the soup with it; kept: whether it stayed."""

    number: int
    alone: float
    value: float
    kept: bool


class Soup(NamedTuple):
    """weights: the merged parameters; scalars: of their evaluation; order: the members in the order of their turns."""

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
    """The soup of members 0, 1, ..., none worse than the best of them by the scalar `key` of `judge`.

    load: the merged parameters of a member; alone: the scalars of each member; finish: a mean of weights as it is
    evaluated (statistics recomputed).
    """
    sign = 1.0 if more_is_better else -1.0
    ranked = sorted(range(len(alone)), key=lambda i: -sign * alone[i][key])
    first = ranked[0]
    weights, scalars = load(first), alone[first]
    total: Total = total_of(weights, spec)
    order = [Tried(first, scalars[key], scalars[key], True)]
    for number in ranked[1:]:
        candidate = total.add(load(number), spec)
        mean = finish(candidate.mean())
        found = judge(mean)
        kept = sign * found[key] >= sign * scalars[key]  # a metric that is not finite never is
        order.append(Tried(number, alone[number][key], found[key], kept))
        if kept:
            weights, scalars, total = mean, found, candidate
    return Soup(weights, scalars, tuple(order))
