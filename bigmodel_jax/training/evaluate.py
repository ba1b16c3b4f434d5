"""One pass over a finite set of batches."""

from collections.abc import Callable, Iterable
from typing import Any

from bigmodel_jax.config import Config
from bigmodel_jax.core import metrics, params, sharding
from bigmodel_jax.core.metrics import Mean


def evaluate(config: Config, eval_step: Callable, weights: params.Tree, batches: Iterable[dict]) -> dict[str, Any]:
    """Scalars of the whole pass under "eval/...": sums are added over all batches and divided once. The loss on each part of
    a mixture is "eval/loss/NAME".

    batches: or what makes them of the weights, by `made_by` (training/rollouts.py)."""
    total, parts = None, {}
    for number, batch in enumerate(batches.made_by(weights) if hasattr(batches, "made_by") else batches):
        sums = sharding.to_host(eval_step(weights, batch))
        total = sums if total is None else metrics.add(total, sums)
        for name, own in _of_parts(eval_step, weights, batches, number, sums).items():
            parts[name] = metrics.add(parts[name], own) if name in parts else own
    if total is None:
        raise ValueError("data: the validation split is empty; there is nothing to evaluate")
    found = config.objective.summarize(total) | config.objective.tables(total)
    for name, sums in parts.items():
        own = config.objective.summarize(sums)
        found |= {f"loss/{name}": own["loss"]} if "loss" in own else {}
    return {f"eval/{k}": v for k, v in found.items()}


def _of_parts(
    eval_step: Callable, weights: params.Tree, batches: Any, number: int, sums: dict[str, Mean]
) -> dict[str, dict[str, Mean]]:
    """The sums of batch `number` by part of a mixture, whose rows stand one part after another.

    A batch inside a part is the part's; one that a border cuts is evaluated once more for each of its parts, with weight 0
    in the rows of the others.
    """
    ranges = batches.parts(number) if hasattr(batches, "parts") else {}
    if len(ranges) == 1:
        return dict.fromkeys(ranges, sums)
    return {name: sharding.to_host(eval_step(weights, batches.only(number, *rows))) for name, rows in ranges.items()}
