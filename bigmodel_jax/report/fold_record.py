"""What a cross-validation has left in its folder, read for its page."""

import json
import math
from pathlib import Path
from typing import Any

from bigmodel_jax.report.writers import read_metrics

RECORD = "folds.json"
FOLDER = "folds"  # the runs, by the number of the fold that is held out
KEYS = {"name", "metric", "better", "k", "stratify", "together", "seed", "records", "labels", "folds"}


def is_cross_validation(folder: Path) -> bool:
    return (Path(folder) / RECORD).is_file()


def read_folds(folder: Path) -> dict[str, Any]:
    """The record; ValueError where the file is damaged."""
    path = Path(folder) / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        missing = KEYS - found.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of a cross-validation ({error})") from error
    if missing:
        raise ValueError(f"{path} is not the record of a cross-validation: it has no {sorted(missing)[0]!r}")
    return found


def evaluated(run_dir: Path) -> dict[str, float]:
    """The finite numbers of a run's last evaluation, by key."""
    found: dict[str, float] = {}
    for record in read_metrics(run_dir):
        numbers = {k: v for k, v in record.items() if k.startswith("eval/") and isinstance(v, int | float)}
        found |= {k: float(v) for k, v in numbers.items() if math.isfinite(v)}
    return found
