"""Checks that a run's evaluation computes the metrics that its config asks for."""

from collections.abc import Sequence
from typing import Any

from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.metrics import further
from bigmodel_jax.objectives import OBJECTIVES
from bigmodel_jax.objectives.base import evaluated


def check(config: Any, sets: Sequence[Metric] = (), every: int = 0) -> None:
    """Raises ValueError for a metric that does not exist, or that the config's objective cannot
    compute.

    sets: the metrics of the evaluation sets. every: steps between two measurements of
    `checkpoint.best_metric`; 0 = only after the last step.
    """
    check_further(config)
    _check_best(config, sets, every)


def _check_best(config: Any, sets: Sequence[Metric], every: int) -> None:
    metric = config.checkpoint.best_metric
    # Metrics of the evaluation are logged with "eval/" in front.
    known = {f"eval/{m.name}": m for m in (*evaluated(config.objective, config.data, config.eval.metrics), *sets)}
    if metric and metric not in known:
        raise ValueError(
            f"checkpoint.best_metric = {metric!r} is not a metric of {type(config.objective).__name__}; "
            f"allowed: {', '.join(known)}{nearest(metric, known)}"
        )
    # A metric that declares a direction fixes best_mode. Other metrics accept either direction.
    mode = {"less": "min", "more": "max"}.get(known[metric].better if metric else "", config.checkpoint.best_mode)
    if mode != config.checkpoint.best_mode:
        raise ValueError(
            f"checkpoint.best_mode = {config.checkpoint.best_mode!r}, but {known[metric].better} of {metric} is better; "
            f"give --checkpoint.best_mode {mode}"
        )
    # Early stopping needs a metric to watch and evaluations during the run.
    for name, missing in (("checkpoint.best_metric", not metric), ("eval.every", not every)):
        if config.eval.patience and missing:
            example = "eval/loss" if name == "checkpoint.best_metric" else "100"
            raise ValueError(f"eval.patience = {config.eval.patience} needs {name}, such as {example}")


def check_further(config: Any) -> None:
    """Raises ValueError for a further metric that does not exist, or that the objective cannot
    compute."""
    objective, name = config.objective, type(config.objective).__name__
    further.check(config.eval.metrics, [m.name for m in objective.metrics])
    asked = {"eval.metrics": config.eval.metrics, "data.group_by": config.data.group_by}
    for option, value in asked.items():
        if value and not objective.scores:
            raise ValueError(
                f"{option} = {value!r}: {name} does not compute its loss from one call of the model, "
                "whose output a metric needs; it must be left out"
            )
    if config.data.group_by and not objective.row_metrics:
        able = ", ".join(cls.__name__ for cls in OBJECTIVES.values() if cls.row_metrics)
        raise ValueError(
            f"data.group_by = {config.data.group_by!r}: {name} has no metrics of single rows; allowed with {able}"
        )
