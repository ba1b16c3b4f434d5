"""Evaluation: one pass over a finite set of batches."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.core import metrics, params, sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.metrics import further, groups


def evaluate(config: Config, eval_step: Callable, weights: params.Tree, batches: Iterable[dict]) -> dict[str, Any]:
    """The scalars of a whole pass, named "eval/...".

    Sums are added over all batches and divided once. For a mixture, "eval/loss/NAME" is the loss on
    each part. `batches` may be an object that makes batches from the weights by `made_by`
    (training/rollouts.py). Raises ValueError for an empty split.
    """
    total, parts = None, {}
    for number, batch in enumerate(batches.made_by(weights) if hasattr(batches, "made_by") else batches):
        # The sums add up on the host, in NumPy, so there is one host sync per batch.
        sums = sharding.to_host(eval_step(weights, batch))
        total = sums if total is None else metrics.add(total, sums)
        for name, own in _of_parts(eval_step, weights, batches, number, sums).items():
            parts[name] = metrics.add(parts[name], own) if name in parts else own
    if total is None:
        raise ValueError("data: the validation split is empty; there is nothing to evaluate")
    found = summarize(config, total)
    for name, sums in parts.items():
        own = config.objective.summarize(_of_objective(sums))
        found |= {f"loss/{name}": own["loss"]} if "loss" in own else {}
    return {f"eval/{k}": v for k, v in found.items()}


def summarize(config: Config, total: dict[str, Any]) -> dict[str, Any]:
    """Scalars and tables from the summed metrics of an evaluation."""
    own = _of_objective(total)
    found = (
        config.objective.summarize(own) | config.objective.tables(own) | further.summarize(config.eval.metrics, total)
    )
    rows = {name: kept for name, kept in total.items() if name.startswith(groups.PREFIX)}
    if rows:
        lines = groups.table(rows, config.data.groups())
        found |= {"groups": lines} | groups.summarize(config.objective.row_metrics[0], lines)
    return found


def _of_objective(total: dict[str, Any]) -> dict[str, Any]:
    """The sums without those of additional metrics and of groups."""
    return {name: sums for name, sums in total.items() if not name.startswith((further.PREFIX, groups.PREFIX))}


def check_metrics(config: Config, eval_step: Callable, weights: params.Tree, batches: Any) -> None:
    """Raises ValueError where an additional metric does not fit model and data; compiles
    nothing.
    """
    if (config.eval.metrics or config.data.group_by) and not hasattr(batches, "made_by"):
        jax.eval_shape(eval_step, weights, next(iter(batches)))


def _of_parts(
    eval_step: Callable, weights: params.Tree, batches: Any, number: int, sums: dict[str, Mean]
) -> dict[str, dict[str, Mean]]:
    """Returns the metric sums of batch `number` for each part of a mixture.

    The rows of one part are consecutive, so most batches lie inside one part, and their sums belong
    to it. A batch with rows of several parts is evaluated again for each of these parts, with
    weight 0 for the rows of the others.
    """
    ranges = batches.parts(number) if hasattr(batches, "parts") else {}
    if len(ranges) == 1:
        return dict.fromkeys(ranges, sums)
    return {name: sharding.to_host(eval_step(weights, batches.only(number, *rows))) for name, rows in ranges.items()}
