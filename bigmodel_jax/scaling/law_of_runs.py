"""Fits the scaling law of finished runs, predicts larger runs, and writes law.json and a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigmodel_jax.core import files, params
from bigmodel_jax.report.history import Run, load_run, unit
from bigmodel_jax.report.law_page import build_law_page
from bigmodel_jax.scaling import law as laws
from bigmodel_jax.scaling.law import FLOPS, Law, Points
from bigmodel_jax.training import run_folder

LARGER = (10.0, 100.0)  # predicted by default: runs with these multiples of the largest run's compute


class Expected(NamedTuple):
    """The law's prediction for a run: parameters, tokens, loss and the interval of the loss."""

    N: float
    D: float
    loss: float
    interval: tuple[float, float]


def point(run_dir: Path) -> tuple[float, float, float, str]:
    """(parameters, tokens, loss, key of the loss) of a finished run.

    Raises ValueError if the run is not finished, counts no tokens or has no loss.
    """
    run = load_run(run_dir)
    if unit(run) != "token":
        raise ValueError(f"scale --law: {run_dir} counts examples; a law is fitted over tokens")
    # A run that was never evaluated has no held-out loss, so its training loss is used.
    key = "eval/loss" if run.last("eval/loss") is not None else "loss"
    loss, step = run.last(key), max((record["step"] for record in run.metrics), default=0)
    tokens = float(run.tokens(np.asarray([step]))[0]) if step else 0.0
    if loss is None or not loss > 0 or not tokens > 0:
        raise ValueError(f"scale --law: {run_dir} has no loss above 0 and no tokens in metrics.jsonl; train it first")
    _check_finished(run, step, run_dir)
    spec = run_folder.load(run_dir).make_model().spec
    # Constants, such as a frozen base, learn nothing from the tokens.
    return float(params.count(spec, trainable=True)), tokens, float(loss), key


def _check_finished(run: Run, step: int, run_dir: Path) -> None:
    steps = (run.config.get("train") or {}).get("steps") or step
    if step < steps:
        raise ValueError(
            f"scale --law: {run_dir} stands at step {step} of {steps}; a law compares finished runs: train it to its end"
        )


def points_of(run_dirs: Sequence[Path]) -> tuple[Points, str]:
    """The points of the runs and the key of their loss. Raises ValueError if the keys differ."""
    found = [point(Path(run_dir)) for run_dir in run_dirs]
    keys = {key for *_, key in found}
    if len(keys) > 1:
        bare = next(d for d, (*_, key) in zip(run_dirs, found, strict=True) if key == "loss")
        raise ValueError(f"scale --law: {bare} has no eval/loss, which other runs have; evaluate it, or leave it out")
    N, D, loss, _ = zip(*found, strict=True)
    points = Points(np.asarray(N), np.asarray(D), np.asarray(loss))
    laws.check(points)
    return points, keys.pop()


def expectations(law: Law, samples: list[Law], points: Points, asked: Sequence[tuple[float, float]]) -> list[Expected]:
    """Predictions for the (parameters, tokens) asked for, or for the best split of more compute."""
    largest = float((FLOPS * points.N * points.D).max())
    sizes = asked or [law.optimum(times * largest) for times in LARGER]
    return [Expected(N, D, float(law.loss(N, D)), laws.interval([one.loss(N, D) for one in samples])) for N, D in sizes]


def fit_runs(
    run_dirs: Sequence[Path], output: Path, *, samples: int, asked: Sequence[tuple[float, float]]
) -> tuple[Law, list[Expected], Path]:
    """Fits the law of these runs, and writes the page `output` and a JSON file beside it."""
    points, key = points_of(run_dirs)
    law = laws.fit(points)
    others = laws.bootstrap(points, law, samples)
    intervals = {name: laws.interval([getattr(one, name) for one in others]) for name in Law._fields}
    expected = expectations(law, others, points, asked)
    names = [Path(run_dir).resolve().name for run_dir in run_dirs]
    record = {
        "metric": key,
        "law": law._asdict(),
        "intervals": intervals,
        "points": [dict(run=n, N=N, D=D, loss=x) for n, N, D, x in zip(names, *map(list, points), strict=True)],
        "expected": [one._asdict() for one in expected],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    files.replace(output.with_suffix(".json"), json.dumps(record, indent=2).encode())
    return law, expected, build_law_page(record, law, output)
