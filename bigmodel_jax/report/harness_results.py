"""Read the results of lm-eval on a run, RUN/harness/*.json, as table rows."""

import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_jax.report import elements

FOLDER = "harness"

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One metric of one task.

    step: step of the evaluated checkpoint. error: standard error; None if lm-eval gives none.
    better: "more", "less" or "". shots: examples in the prompt. questions: evaluated questions.
    """

    step: int
    task: str
    metric: str
    value: float
    error: float | None
    better: str
    shots: int | None
    questions: int | None


def read(run_dir: Path) -> list[Row]:
    """Rows of the newest evaluation of each task and metric.

    A file without results is skipped with a warning.
    """
    found = {}
    # File names begin with the step in eight digits, so a later step overrides an earlier one.
    for path in sorted(Path(run_dir).glob(f"{FOLDER}/*.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            found |= {(row.task, row.metric): row for row in rows(results)}
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            log.warning("%s holds no results of lm-eval (%s) and is left out", path, error)
    return list(found.values())


def rows(results: dict[str, Any]) -> list[Row]:
    """Rows of one results file, or of what lm-eval returned."""
    step, found = int(results.get("step", 0)), []
    better, shots = results.get("higher_is_better", {}), results.get("n-shot", {})
    numbers = results.get("n-samples", {})
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            # Keys are "metric,filter". Standard errors have keys of their own.
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered in ("", "none") else f"{metric} ({filtered})"
            up = (better.get(task) or {}).get(metric)
            direction = {True: "more", False: "less"}.get(up, "")
            count = (numbers.get(task) or {}).get("effective")
            found.append(
                Row(step, task, name, value, error if _is_number(error) else None, direction, shots.get(task), count)
            )
    return found


def _is_number(value: Any) -> bool:
    # In Python a bool is an int, and True would be shown as 1.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def written(row: Row) -> tuple[str, ...]:
    """Task, metric, value, standard error, examples in the prompt, questions, as texts."""
    error = "" if row.error is None else f"± {row.error:.4f}"
    counts = ("" if n is None else f"{n:,}" for n in (row.shots, row.questions))
    arrow = {"more": " ↑", "less": " ↓"}.get(row.better, "")
    # A perplexity can have so many digits that four decimals would fill the column.
    value = f"{row.value:.4f}" if abs(row.value) < 1000 else f"{row.value:.5g}"
    return row.task, f"{row.metric}{arrow}", value, error, *counts


HEADS = ("Task", "Metric", "Value", "Error", "Shots", "Questions")


def table(run_dir: Path) -> str:
    """The HTML table of all results. It is empty without results."""
    rows = [(*written(row), f"{row.step:,}") for row in read(run_dir)]
    return elements.table((*HEADS, "Step"), rows, "classes") if rows else ""
