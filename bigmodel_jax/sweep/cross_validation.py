"""k-fold cross-validation: k ordinary runs, each with another fold of the training records held
out.

Finished runs are read and not repeated, so the same command continues after a kill.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigmodel_jax.config import Config
from bigmodel_jax.core import files
from bigmodel_jax.data.folded import Folds, counts, folded, has_validation
from bigmodel_jax.report.fold_record import FOLDER, RECORD, evaluated, read_folds
from bigmodel_jax.report.progress import duration
from bigmodel_jax.sweep.metric import Direction, bounds
from bigmodel_jax.sweep.one_run import trained
from bigmodel_jax.sweep.seeds import interval, summary
from bigmodel_jax.training import run_folder
from bigmodel_jax.training.shared_programs import SharedPrograms

HELD_OUT = "data.source.fold"  # the field that names the held-out fold


def cross_validate(
    config: Config,
    folds: Folds,
    metric: str,
    direction: Direction,
    run_dir: Path,
    say: Callable[[str], None],
    *,
    target: str = "",
    source: Path | None = None,
) -> dict[str, Any]:
    """Train the folds that are not finished, in run_dir/folds. Write and return folds.json.

    Raises ValueError with a one-line message for data without folds, for a folder with other folds,
    and if no fold completed.
    """
    first = configured(config, folds, 0)
    record = {
        "name": run_dir.name,
        "target": target,
        "metric": metric,
        "better": "less" if direction == "minimize" else "more",
        **dataclasses.asdict(folds),
        "label": first.data.source.stratify,
        "aside": has_validation(config.data),
        **counts(first.data),
        "folds": [],
    }
    _check_same(run_dir, record)
    for n in range(folds.k):  # other options are refused before the record is replaced
        run_folder.check(run_dir / FOLDER / str(n), configured(config, folds, n))
    # The number of the held-out fold does not change the program, so all folds share one.
    programs, began = SharedPrograms((), unread=(HELD_OUT,)), time.monotonic()
    for n in range(folds.k):
        files.replace(run_dir / RECORD, json.dumps(record, indent=1) + "\n")
        # The record on disk has all finished folds, so the page can be made during the next one.
        record["folds"].append(_train(config, folds, n, metric, run_dir, programs, source))
        one = record["folds"][-1]
        left = (time.monotonic() - began) / (n + 1) * (folds.k - n - 1)
        said = f"failed: {one['reason']}" if one["reason"] else f"{metric} {one['value']:.5g}"
        say(f"fold {n} ({n + 1} of {folds.k})  {said}{f'  about {duration(left)} left' if left else ''}")
    record["summary"] = summarize(first, record)
    files.replace(run_dir / RECORD, json.dumps(record, indent=1) + "\n")
    if not record["summary"]:
        raise ValueError(
            f"{run_dir}: none of the {folds.k} folds completed; the first failure: {record['folds'][0]['reason']}"
        )
    return record


def configured(config: Config, folds: Folds, n: int) -> Config:
    """`config` with fold `n` held out."""
    return dataclasses.replace(config, data=folded(config.data, folds, n))


def _check_same(run_dir: Path, record: dict[str, Any]) -> None:
    """Make the folder. Raises ValueError if it holds other folds."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / RECORD).is_file():
        return
    before = read_folds(run_dir)
    for name in ("k", "stratify", "together", "seed", "records", "labels"):
        if before[name] != record[name]:
            what = f"{name} = {before[name]!r}" if name in ("k", "stratify", "together", "seed") else "other data"
            raise ValueError(f"{run_dir} holds a cross-validation with {what}; give another --run_dir, or delete it")


def _train(config, folds: Folds, n: int, metric: str, run_dir: Path, programs, source) -> dict[str, Any]:
    folder, began = run_dir / FOLDER / str(n), time.monotonic()
    value, reason = trained(configured(config, folds, n), folder, metric, programs, source=source)
    numbers = {} if reason else evaluated(folder)
    return {"value": value, "metrics": numbers, "reason": reason, "seconds": round(time.monotonic() - began, 2)}


def summarize(config: Config, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{metric: mean, standard deviation and intervals} of each number that all finished folds have.

    interval: 95 % interval of the mean by the t distribution, for k independent values. corrected:
    a wider interval, since any two folds share most of their training records. Its variance factor
    is 1 / k + n_held_out / n_train (Nadeau & Bengio, Machine Learning 52, 2003). Both are cut at
    the metric's bounds.
    """
    done = [fold["metrics"] for fold in record["folds"] if not fold["reason"]]
    names = [name for name in (done[0] if done else ()) if all(name in found for found in done)]
    out = {}
    for name in names:
        values = [float(found[name]) for found in done]
        out[name] = {key: value for key, value in summary(name, values).items() if key in ("mean", "std")}
        # One of k folds is held out, so n_held_out / n_train = 1 / (k - 1).
        ratios = {"interval": 0.0, "corrected": 1 / (record["k"] - 1)}
        out[name] |= {key: interval(values, ratio, bounds(config, name)) for key, ratio in ratios.items()}
    return out


def lines(record: dict[str, Any]) -> list[str]:
    """The result in sentences for the terminal."""
    found, name = record["summary"].get(record["metric"]), record["metric"]
    done = sum(not fold["reason"] for fold in record["folds"])
    said = ["The source's own validation split was not used."] if record["aside"] else []
    if found is None or found["std"] is None:
        return [*said, f"{name}: one fold of {record['k']} completed, so there is no spread"]
    low, high = found["corrected"]
    spread = f"mean {found['mean']:.5g}, standard deviation {found['std']:.3g} over {done} folds"
    return [*said, f"{name}: {spread}; 95 % interval of the mean {low:.5g} to {high:.5g}"]
