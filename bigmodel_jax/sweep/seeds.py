"""Compare two configs over the same seeds: mean, spread, and paired tests of the difference."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bigmodel_jax.config import Config, flat, replaced
from bigmodel_jax.core import files
from bigmodel_jax.report.sweep import SEEDS, number
from bigmodel_jax.sweep.metric import Direction, bounds
from bigmodel_jax.sweep.one_run import trained
from bigmodel_jax.training import run_folder
from bigmodel_jax.training.shared_programs import SEED, SharedPrograms

LEVEL = 0.95  # confidence level of the intervals
UNBOUNDED = (-math.inf, math.inf)


def compare(
    configs: dict[str, Config],
    count: int,
    metric: str,
    direction: Direction,
    run_dir: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train two configs with `count` seeds each, in run_dir/seeds. Write and return the result.

    The seeds count up from each config's own seed. A run that fails counts as missing. The paired
    tests then also leave out the other config's run with that seed. Raises ValueError if the folder
    holds other runs, and if no run completed.
    """
    # One compiled step serves all runs, with the seed and differing rates as inputs.
    programs = SharedPrograms((SEED, *_differing_floats(*configs.values())))
    values, reasons = {name: [] for name in configs}, {}
    runs = [
        (name, run_dir / "seeds" / f"{name}-{i}", replaced(config, SEED, config.train.seed + i))
        for i in range(count)
        for name, config in configs.items()
    ]
    for _, folder, config in runs:
        run_folder.check(folder, config)
    for name, folder, config in runs:
        value, reason = trained(config, folder, metric, programs)
        values[name].append(value)
        reasons |= {folder.name: reason} if reason else {}
        say(f"{folder.name}  {f'failed: {reason}' if reason else f'{metric} {value:.5g}'}")
    low, high = bounds(next(iter(configs.values())), metric)
    found = {"metric": metric, "better": "less" if direction == "minimize" else "more", "reasons": reasons}
    found |= {
        "configs": [summary(name, own) for name, own in values.items()],
        "paired": paired(*values.values(), high - low),
    }
    files.replace(run_dir / SEEDS, json.dumps(found, indent=1) + "\n")
    if len(reasons) == len(runs):
        first = next(iter(reasons.values()))
        raise ValueError(f"{run_dir}: none of the {len(runs)} runs completed; the first failure: {first}")
    return found


def _differing_floats(first: Config, second: Config) -> tuple[str, ...]:
    """Float fields of the optimizer in which two configs differ.

    One compiled step can serve both configs, with these fields as inputs.
    """
    a, b = flat(first), flat(second)
    return tuple(
        name
        for name in a
        if name.startswith("optim.")
        and isinstance(a[name], float)
        and isinstance(b.get(name), float)
        and a[name] != b[name]
    )


# ------------------------------------------------------------ statistics


def summary(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of one config's values; None if there are too few."""
    known = np.array([value for value in values if value is not None], float)
    mean = float(known.mean()) if len(known) else None
    return {
        "name": name,
        "values": list(values),
        "mean": mean,
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
    }


def interval(
    values: Sequence[float], ratio: float = 0.0, within: tuple[float, float] = UNBOUNDED
) -> list[float] | None:
    """The 95 % interval of the mean by the t distribution; None with fewer than two values.

    ratio: for values that share training records, the number of records that a value is measured
    on, divided by the number trained on. It widens the interval (Nadeau & Bengio, Machine Learning
    52, 2003). within: the metric's bounds, at which the interval is cut.
    """
    if len(values) < 2:
        return None
    scale = float(np.std(values, ddof=1)) * np.sqrt(1 / len(values) + ratio)
    middle = float(np.mean(values))
    # SciPy gives NaN for a scale of 0.
    if not scale:
        return [middle, middle]
    return _cut(stats.t.interval(LEVEL, len(values) - 1, middle, scale), values, within)


def _cut(ends: Sequence[float], values: Sequence[float], within: tuple[float, float]) -> list[float]:
    """The ends of an interval, cut at the bounds; as they are where a value is beyond a bound."""
    fits = within[0] <= min(values) and max(values) <= within[1]
    return [float(end) for end in (np.clip(ends, *within) if fits else ends)]


def paired(first: Sequence[float | None], second: Sequence[float | None], most: float = math.inf) -> dict[str, Any]:
    """Paired statistics of second - first over the seeds; empty with fewer than two pairs.

    difference: the mean. interval, p_t: its 95 % interval and p value by the paired t-test.
    p_permutation: the p value of the exact two-sided permutation test, which assumes no
    distribution and tries all sign flips of the differences. least: the smallest p that the
    permutation test can give for so many seeds. most: the largest possible difference, at which the
    interval is cut.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return {}
    a, b = np.array(pairs, float).T
    found: dict[str, Any] = {"count": len(pairs), "difference": float((b - a).mean()), "least": 2.0 ** (1 - len(pairs))}
    if np.ptp(b - a) == 0:  # without spread, t is infinite or 0 / 0
        return found | {"interval": None, "p_t": None, "p_permutation": _permuted(a, b)}
    test = stats.ttest_rel(b, a)
    ends = _cut(test.confidence_interval(LEVEL), b - a, (-most, most))
    return found | {"interval": ends, "p_t": float(test.pvalue), "p_permutation": _permuted(a, b)}


def _permuted(a: np.ndarray, b: np.ndarray) -> float:
    test = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True, rng=0
    )
    return float(test.pvalue)


def lines(found: dict[str, Any]) -> list[str]:
    """The result in sentences for the terminal."""
    said = [
        f"{one['name']}: {found['metric']} {number(one['mean'])} ± {number(one['std'])} "
        f"({sum(value is not None for value in one['values'])} seeds)"
        for one in found["configs"]
    ]
    test = found["paired"]
    if not test:
        return [*said, "no test: fewer than two seeds completed with both configs"]
    interval = f", 95 % interval {test['interval'][0]:.4g} to {test['interval'][1]:.4g}" if test["interval"] else ""
    names = " - ".join(one["name"] for one in reversed(found["configs"]))
    p = f"paired t-test p = {number(test['p_t'])}, permutation test p = {test['p_permutation']:.4g}"
    return [
        *said,
        f"{names}: {test['difference']:.4g}{interval}; {p} (at least {test['least']:.4g} with so many seeds)",
    ]
