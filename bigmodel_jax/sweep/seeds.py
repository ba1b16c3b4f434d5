"""Two configs over the same seeds: mean, spread, and whether their difference is more than chance (paired tests)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bigmodel_jax.config import Config, flat, replaced
from bigmodel_jax.core import files
from bigmodel_jax.report.sweep import SEEDS, number
from bigmodel_jax.sweep.metric import Direction
from bigmodel_jax.sweep.one_run import trained
from bigmodel_jax.training.shared_programs import SEED, SharedPrograms

LEVEL = 0.95  # of the interval


def compare(
    configs: dict[str, Config],
    count: int,
    metric: str,
    direction: Direction,
    run_dir: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Trains each of two configs with `count` seeds, from its own seed on, in run_dir/seeds; writes and returns the result.

    A run that fails counts as missing, and in the test so does the other config's run of that seed.
    """
    programs = SharedPrograms((SEED, *_differing_floats(*configs.values())))
    values, reasons = {name: [] for name in configs}, {}
    for i in range(count):
        for name, config in configs.items():
            folder = run_dir / "seeds" / f"{name}-{i}"
            value, reason = trained(replaced(config, SEED, config.train.seed + i), folder, metric, programs)
            values[name].append(value)
            reasons |= {folder.name: reason} if reason else {}
            say(f"{folder.name}  {f'failed: {reason}' if reason else f'{metric} {value:.5g}'}")
    found = {"metric": metric, "better": "less" if direction == "minimize" else "more", "reasons": reasons}
    found |= {"configs": [summary(name, own) for name, own in values.items()], "paired": paired(*values.values())}
    files.replace(run_dir / SEEDS, json.dumps(found, indent=1) + "\n")
    return found


def _differing_floats(first: Config, second: Config) -> tuple[str, ...]:
    """Fields of the optimizer in which two configs differ by a number: one step can serve both."""
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
    """Mean and spread (the sample's standard deviation) of one config; None where there are too few values."""
    known = np.array([value for value in values if value is not None], float)
    mean = float(known.mean()) if len(known) else None
    return {
        "name": name,
        "values": list(values),
        "mean": mean,
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
    }


def interval(values: Sequence[float], ratio: float = 0.0) -> list[float] | None:
    """The 95 % interval of the mean by the t distribution; None with fewer than two values.

    ratio: of the records that a value is measured on to those trained on, where the values share training records; it widens
    the interval (Nadeau & Bengio, Machine Learning 52, 2003).
    """
    if len(values) < 2:
        return None
    scale = float(np.std(values, ddof=1)) * np.sqrt(1 / len(values) + ratio)
    middle = float(np.mean(values))
    if not scale:
        return [middle, middle]
    low, high = stats.t.interval(LEVEL, len(values) - 1, middle, scale)
    return [float(low), float(high)]


def paired(first: Sequence[float | None], second: Sequence[float | None]) -> dict[str, Any]:
    """Of second - first, seed by seed: mean, its 95 % interval and p by the paired t-test, and p by the exact permutation
    test (two-sided), which assumes no distribution: it flips the signs of the differences in every way.

    least: the smallest p that so many seeds can give the permutation test. Empty with fewer than two seeds of both.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return {}
    a, b = np.array(pairs, float).T
    found: dict[str, Any] = {"count": len(pairs), "difference": float((b - a).mean()), "least": 2.0 ** (1 - len(pairs))}
    if np.ptp(b - a) == 0:  # no spread at all: t is 0 / 0 or infinite
        return found | {"interval": None, "p_t": None, "p_permutation": _permuted(a, b)}
    test = stats.ttest_rel(b, a)
    low, high = test.confidence_interval(LEVEL)
    return found | {"interval": [float(low), float(high)], "p_t": float(test.pvalue), "p_permutation": _permuted(a, b)}


def _permuted(a: np.ndarray, b: np.ndarray) -> float:
    test = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True, rng=0
    )
    return float(test.pvalue)


def lines(found: dict[str, Any]) -> list[str]:
    """The result in words, for the terminal."""
    said = [
        f"{one['name']}: {found['metric']} {number(one['mean'])} ± {number(one['std'])} "
        f"({sum(value is not None for value in one['values'])} seeds)"
        for one in found["configs"]
    ]
    test = found["paired"]
    if not test:
        return [*said, "no test: fewer than two seeds ended well with both configs"]
    interval = f", 95 % interval {test['interval'][0]:.4g} to {test['interval'][1]:.4g}" if test["interval"] else ""
    names = " - ".join(one["name"] for one in reversed(found["configs"]))
    p = f"paired t-test p = {number(test['p_t'])}, permutation test p = {test['p_permutation']:.4g}"
    return [
        *said,
        f"{names}: {test['difference']:.4g}{interval}; {p} (at least {test['least']:.4g} with so many seeds)",
    ]
