"""Metric declarations of a run: title, unit, direction.

The objective and the data declare them. They are saved in the run's folder, where the report pages
read them.
"""

import dataclasses
import importlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bigmodel_jax.core import files, formats, ranges
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.objectives import Objective
from bigmodel_jax.objectives.base import evaluated
from bigmodel_jax.report.progress import clock, duration, short

log = logging.getLogger(__name__)

DECLARED_FILE = "metrics.json"
# Metrics that the training loop itself measures, in the order of the comparison's rows.
OWN = (
    Metric("train_loss", "Training loss", "less", "{:.3f}"),
    Metric("tokens_per_second", "Throughput", "more"),
    Metric("mfu", "MFU", "more", "{:.1%}"),
    Metric("step_seconds", "Step time", "less"),
    Metric("data_wait_share", "Waiting for data", "less", "{:.2%}", "of the time in steps"),
    Metric("goodput", "Goodput", "more", "{:.1%}"),
    Metric("wall_seconds", "Training time"),
    Metric("step", "Steps", form="{:,.0f}"),
)


def _elapsed(seconds: float) -> str:
    """The text of a time: m:ss, or seconds with a unit if the time is shorter than a minute."""
    return clock(seconds) if seconds >= 60 else duration(seconds)


# Functions that write values which a format string cannot write.
WRITTEN = {"tokens_per_second": short, "wall_seconds": _elapsed, "step_seconds": duration}
Known = dict[str, Metric]  # by the key under which a number is recorded: "eval/accuracy"


def of(
    objective: Objective | type[Objective],
    data: DataConfig | type[DataConfig],
    further: Sequence[str] = (),
    sets: Sequence[Metric] = (),
) -> Known:
    """Metrics by key that an objective and its data declare.

    further: names of additional metrics (`eval.metrics`). sets: metrics of the evaluation sets.
    """
    of_rows = objective.row_metrics if data.group_by else ()  # a table by group has these metrics too
    return {f"eval/{m.name}": m for m in (*of_rows, *evaluated(objective, data, further), *data.levels, *sets)}


def write(run_dir: Path, known: Known, counts: str, kinds: dict[str, str]) -> None:
    """Save the declarations in the run's folder.

    counts: what a step's loss is a mean over, "tokens" or "examples". kinds: the result of
    `compared`.
    """
    metrics = [dataclasses.asdict(m) for m in known.values()]
    content = {"counts": counts, "metrics": metrics, "compared": kinds}
    files.replace(run_dir / DECLARED_FILE, json.dumps(content, indent=1) + "\n")


def read(run_dir: Path, config: dict) -> tuple[Known, str, dict[str, str]]:
    """(metrics by key, what a step's loss is a mean over, result of `compared`) of a run's folder.

    The second is "tokens", "examples" or "" for unknown.

    If the folder lacks a declaration, the classes that its config names give it.
    """
    path, data = run_dir / DECLARED_FILE, config.get("data", {})
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics = [Metric(**m) for m in found["metrics"]]
        for metric in metrics:
            # A dataclass takes values of any type, and a wrong type would fail only later, inside
            # the page.
            ranges.check(metric)
        known = {f"eval/{m.name}": m for m in metrics}
        return known, str(found["counts"]), dict(found["compared"]) if "compared" in found else compared(data)
    except FileNotFoundError:
        return _by_class(config), "", compared(data)
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s does not declare the metrics (%s); the page shows their names", path, error)
        return _by_class(config), "", compared(data)


def compared(part: Any, prefix: str = "", base: type = DataConfig, cut: bool = False) -> dict[str, str]:
    """{dotted field name: kind} of a data config or its JSON.

    The kind says how a field affects the comparison of two runs (report/comparable.py). base: the
    class for JSON that names no class of this package. If a run splits its validation rows off the
    training rows, the training files also decide which rows are held out.
    """
    saved = isinstance(part, dict)
    cls, values = (_class(str(part.get("type", "")), base), part) if saved else (type(part), vars(part))
    own, source = dict(getattr(cls, "compared", {})), values.get("source")
    if not prefix and cls is not base and cls.__module__.startswith("bigmodel_jax."):
        own["type"] = "prepares"  # a user's own class may hold out different rows of the same source
    validation = source.get("validation") if isinstance(source, dict) else getattr(source, "validation", "")
    cut = cut or bool(values.get(getattr(cls, "cut", "")) and not validation)
    found = {f"{prefix}{name}": kind for name, kind in own.items() if not (cut and kind == "training" and prefix)}
    for name, value in values.items():
        if isinstance(value, dict) or dataclasses.is_dataclass(value):
            found |= compared(value, f"{prefix}{name}.", Source, cut)
    return found


def _by_class(config: dict) -> Known:
    parts = (("objective", Objective), ("data", DataConfig))
    return of(*(_class(str(config.get(name, {}).get("type", "")), base) for name, base in parts))


def _class(tag: str, base: type) -> type:
    """The class of this package that "module:Class" names, else `base`."""
    module, _, name = tag.partition(":")
    # Making a page must not run a user's code, which an import would do.
    if not module.startswith("bigmodel_jax."):
        return base
    try:
        # An old config names a module by the path that it had then.
        cls = getattr(importlib.import_module(formats.module_now(module)), name, base)
    except ImportError:
        return base  # a module that only another version has
    return cls if isinstance(cls, type) and issubclass(cls, base) else base


def find(known: Known, key: str) -> Metric:
    """The declaration of a metric. A metric that nothing declares gets one made from its name.

    "loss/web" is the loss on the part "web".
    """
    name = key.removeprefix("eval/")
    whole, _, part = name.partition("/")
    if whole == "loss" and part and f"eval/{whole}" in known:
        metric = known[f"eval/{whole}"]
        return dataclasses.replace(metric, name=name, title=f"{metric.title}, {part}", headline=False, beside=whole)
    title = name.replace("_", " ")
    return known.get(key) or next((m for m in OWN if m.name == key), Metric(name, title[:1].upper() + title[1:]))


def text(metric: Metric, value: float) -> str:
    """A value as readers expect it: an MFU of 0.3012 becomes "30.1 %"."""
    return WRITTEN.get(metric.name, metric.form.format)(value).replace("%", " %")


def is_share(metric: Metric) -> bool:
    """Whether the metric is written in percent."""
    return metric.form.endswith("%}")


def best(metric: Metric, values: Iterable[float | None]) -> str | None:
    """The best of several runs' values, as text; None if all texts are equal."""
    numbers = [v for v in values if v is not None]
    if not metric.better or len({text(metric, v) for v in numbers}) < 2:
        return None
    return text(metric, min(numbers) if metric.better == "less" else max(numbers))
