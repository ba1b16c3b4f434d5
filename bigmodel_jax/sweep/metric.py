"""The metric by which the runs of a sweep are judged."""

import math
from typing import Literal

from bigmodel_jax import eval_sets
from bigmodel_jax.config import Config
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.report import declared

Direction = Literal["minimize", "maximize"]


def judged_by(config: Config, name: str) -> tuple[str, Direction]:
    """(key of the metric, direction to optimize).

    name: a metric; "" means checkpoint.best_metric, else eval/loss. Raises ValueError for a metric
    that nothing in the config declares, or that has no direction.
    """
    known = _known(config)
    key = name or config.checkpoint.best_metric or "eval/loss"
    if not name and config.checkpoint.best_metric:
        # The config states the direction itself, so the metric need not be declared.
        return key, "maximize" if config.checkpoint.best_mode == "max" else "minimize"
    key = key if key in known or key.startswith("eval/") else f"eval/{key}"
    if key not in known and not key.startswith("eval/loss/"):
        raise ValueError(f"--metric {name or key} is unknown{nearest(key, known)}; known: {', '.join(sorted(known))}")
    better = declared.find(known, key).better
    if not better:
        usable = ", ".join(key for key, metric in known.items() if metric.better)
        raise ValueError(
            f"--metric {key}: it does not declare whether more or less is better; these metrics do: {usable}"
        )
    return key, "minimize" if better == "less" else "maximize"


def bounds(config: Config, key: str) -> tuple[float, float]:
    """(least, greatest) value of a metric: 0 and 1 for a share, and infinite for others."""
    if not declared.is_share(declared.find(_known(config), key)):
        return -math.inf, math.inf
    # Insertions are errors, too, so a transcript may have more errors than words.
    return 0.0, math.inf if {"wer", "cer"} & set(key.split("/")) else 1.0


def _known(config: Config) -> declared.Known:
    return declared.of(config.objective, config.data, config.eval.metrics, eval_sets.declared(config))
