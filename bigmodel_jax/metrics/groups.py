"""Metrics per group of rows, with 95 % confidence intervals, to find groups with worse results.

A metric that is a share of rows gets Wilson's interval (Wilson 1927; Brown, Cai and DasGupta 2001).
Any other mean gets a percentile bootstrap interval, from rows drawn with replacement (Efron 1979).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.metrics import Metric, Rows

PREFIX = "by_group/"  # this prefix stands before a metric's name among an evaluation's sums
LEVEL = 1.959964  # 95 % of a normal distribution lies within this many standard deviations
DRAWS = 1000
MOST = 50


def rows(values: dict[str, tuple[jax.Array, jax.Array]], group: jax.Array) -> dict[str, Rows]:
    """Keeps every row's metric values together with the row's weight and group number.

    `values` has (values (B,), weights (B,)) for each metric. `group` has shape (B,).
    """
    return {
        PREFIX + name: Rows(jnp.stack([group.astype(jnp.float32), x.astype(jnp.float32)], axis=1), weights)
        for name, (x, weights) in values.items()
    }


def names_of(column: Sequence[str], option: str, chosen: str) -> tuple[str, ...]:
    """The sorted distinct values of a column, one group each.

    Raises ValueError where there are more than `MOST` of them.
    """
    found = tuple(sorted(set(column), key=_order))
    if len(found) > MOST:
        raise ValueError(
            f"{option} = {chosen!r}: it has {len(found)} different values; it must be a column of at most {MOST}"
        )
    return found


def _order(name: str) -> tuple:
    try:
        # Numbers sort by value, so that 10 follows 9.
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def wilson(hits: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % interval of the share hits / count."""
    share, square = hits / count, LEVEL**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = LEVEL / (1 + square / count) * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    # Rounding must not push the interval past an observed share of exactly 0 or 1.
    return float(max(min(middle - half, share), 0.0)), float(min(max(middle + half, share), 1.0))


def bootstrap(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of a weighted mean. Values and weights have shape (N,).

    The seed is fixed, so that the same rows always give the same interval.
    """
    rng, means = np.random.default_rng(0), np.empty(DRAWS)
    for draw in range(DRAWS):
        at = rng.integers(0, len(values), len(values))
        means[draw] = np.average(values[at], weights=weights[at])
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def table(total: dict[str, Rows], names: Sequence[str]) -> list[list]:
    """Lines [metric, group, rows, value, low, high] for each metric and each group that
    has rows.
    """
    found = []
    for key, kept in total.items():
        group, values = np.asarray(kept.values, np.float64).T
        weights = np.asarray(kept.weights, np.float64)
        for number, name in enumerate(names):
            mine = (group == number) & (weights > 0)
            if mine.any():
                line = _with_interval(values[mine], weights[mine])
                found.append([key.removeprefix(PREFIX), name, int(mine.sum()), *line])
    return found


def _with_interval(values: np.ndarray, weights: np.ndarray) -> list[float]:
    # Wilson's interval holds for unweighted 0/1 values only.
    is_share = np.isin(values, (0.0, 1.0)).all() and (weights == 1).all()
    low, high = wilson(values.sum(), len(values)) if is_share else bootstrap(values, weights)
    return [float(np.average(values, weights=weights)), low, high]


def declared(metric: Metric) -> tuple[Metric, Metric]:
    """Declares the two summary numbers over the groups: the worst group's value and the gap.

    `metric` is the metric by which the groups are compared.
    """
    title = metric.title[:1].lower() + metric.title[1:]
    worst = Metric(f"worst_group_{metric.name}", f"Worst group, {title}", metric.better, metric.form, metric.unit)
    gap = Metric(f"{metric.name}_gap", "Gap of groups", "less", metric.form, "best less worst", beside=worst.name)
    return worst, gap


def summarize(metric: Metric, lines: list[list]) -> dict[str, float]:
    """Computes the two numbers of `declared` from the lines of `table`."""
    values = [value for name, _, _, value, _, _ in lines if name == metric.name]
    worst, gap = declared(metric)
    if not values:
        return {}
    return {worst.name: max(values) if metric.better == "less" else min(values), gap.name: max(values) - min(values)}
