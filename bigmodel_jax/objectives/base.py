"""What an objective is: a loss over a batch, as sums."""

import dataclasses
from typing import Any, NamedTuple

import jax

from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.models.base import Model


class Loss(NamedTuple):
    """mean: the quantity to minimise, as (sum, count); metrics: further sums; updates: non-trainable values by path."""

    mean: Mean
    metrics: dict[str, Mean]
    updates: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of every objective's config. `params` are the merged parameters, already in the compute dtype."""

    def loss(self, model: Model, params: Any, batch: dict, *, rng: jax.Array | None, train: bool) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} does not define loss()")

    def metric_names(self) -> tuple[str, ...]:
        """Names that an evaluation reports, without the "eval/" in front."""
        return ("loss",)

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        """Scalars of one evaluation from its summed metrics, without the "eval/" in front."""
        return {k: float(m.compute()) for k, m in metrics.items()}
