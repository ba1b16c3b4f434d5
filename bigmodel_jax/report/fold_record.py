"""Read the record that a cross-validation leaves in its folder."""

import json
import math
from pathlib import Path
from typing import Any

from bigmodel_jax.report.writers import read_metrics

RECORD = "folds.json"
FOLDER = "folds"  # folder of the runs, named by the number of the held-out fold
KEYS = {"name", "metric", "better", "k", "stratify", "together", "seed", "records", "labels", "folds"}


def is_cross_validation(folder: Path) -> bool:
    """Whether a folder holds a cross-validation."""
    return (Path(folder) / RECORD).is_file()


def read_folds(folder: Path) -> dict[str, Any]:
    """The record in folds.json. Raises ValueError if the file is damaged."""
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
    """The finite values of a run's last evaluation, by key."""
    found: dict[str, float] = {}
    for record in read_metrics(run_dir):
        numbers = {k: v for k, v in record.items() if k.startswith("eval/") and isinstance(v, int | float)}
        found |= {k: float(v) for k, v in numbers.items() if math.isfinite(v)}
    return found
