"""Read what a sweep left in its folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bigmodel_jax.report.writers import METRICS_FILE, read_metrics

RECORD = "sweep.json"  # the record of the trials
SEEDS = "seeds.json"  # the comparison of two configs over seeds


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial.

    state: "complete", "pruned", "fail" or "running". values: {field: its value in this trial}.
    value: the metric, if the trial completed. reason: why it failed. reports: (step, value) of each
    evaluation. losses: (step, loss) of its training.
    """

    number: int
    state: str
    values: dict[str, Any]
    value: float | None
    reason: str
    seconds: float | None
    reports: list[tuple[int, float]]
    losses: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """The content of sweep.json.

    better: "less" or "more". space: {field: {"text": as written, "kind": "floats", "integers" or
    "choice", "log": whether the scale is logarithmic, "ends": the range's ends, or all labels of a
    choice}}. importance: {field: its share of the spread of the metric}. facts: sampler, pruner,
    seed and number of trials wanted.
    """

    name: str
    metric: str
    better: str
    space: dict[str, dict[str, Any]]
    importance: dict[str, float]
    trials: list[Trial]
    facts: dict[str, Any]

    @property
    def done(self) -> list[Trial]:
        """The completed trials, in order of their numbers."""
        return [trial for trial in self.trials if trial.value is not None]

    @property
    def best(self) -> Trial | None:
        """The completed trial with the best value; None without any."""
        sign = 1 if self.better == "less" else -1
        return min(self.done, key=lambda trial: sign * trial.value, default=None)


def number(value: float | None) -> str:
    """A number in four digits; a dash if there is none."""
    return "–" if value is None else f"{value:.4g}"


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep or a comparison over seeds."""
    return any((Path(folder) / name).is_file() for name in (RECORD, SEEDS))


def read_sweep(folder: Path) -> tuple[SweepRecord | None, dict[str, Any] | None]:
    """(the trials, the comparison over seeds). Each is None if there is none.

    Raises ValueError naming a damaged file.
    """
    record, seeds = (_read(folder / name) for name in (RECORD, SEEDS))
    try:
        return record and _record(folder, record), seeds
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / RECORD} is not the record of a sweep ({error!r})") from error


def _read(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _record(folder: Path, found: dict) -> SweepRecord:
    facts = {name: found[name] for name in ("sampler", "pruner", "seed", "wanted")}
    trials = [_trial(folder, trial) for trial in found["trials"]]
    parts = {name: found[name] for name in ("name", "metric", "better", "space", "importance")}
    return SweepRecord(**parts, trials=trials, facts=facts)


def _trial(folder: Path, trial: dict) -> Trial:
    reports = [(int(step), float(value)) for step, value in trial["reports"]]
    own = {name: trial[name] for name in ("number", "state", "values", "value", "reason", "seconds")}
    return Trial(**own, reports=reports, losses=_losses(folder / "trials" / f"{trial['number']:04d}"))


def _losses(folder: Path) -> list[tuple[int, float]]:
    # A trial can fail before its first record, and `read_metrics` would raise.
    if not (folder / METRICS_FILE).is_file():
        return []
    records = [(record["step"], record["loss"]) for record in read_metrics(folder) if "loss" in record]
    return [(step, float(loss)) for step, loss in records if isinstance(loss, (int, float))]
