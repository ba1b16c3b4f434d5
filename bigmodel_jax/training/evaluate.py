"""One pass over a finite set of batches."""

from collections.abc import Callable, Iterable
from typing import Any

from bigmodel_jax.config import Config
from bigmodel_jax.core import metrics, params, sharding


def evaluate(config: Config, eval_step: Callable, weights: params.Tree, batches: Iterable[dict]) -> dict[str, Any]:
    """Scalars of the whole pass under "eval/...": sums are added over all batches and divided once.

    batches: or what makes them of the weights, by `made_by` (training/rollouts.py)."""
    total = None
    for batch in batches.made_by(weights) if hasattr(batches, "made_by") else batches:
        sums = sharding.to_host(eval_step(weights, batch))
        total = sums if total is None else metrics.add(total, sums)
    if total is None:
        raise ValueError("data: the validation split is empty; there is nothing to evaluate")
    found = config.objective.summarize(total) | config.objective.tables(total)
    return {f"eval/{k}": v for k, v in found.items()}
