"""What an objective is: a loss over a batch, as sums."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.models.base import Model


class Loss(NamedTuple):
    """mean: the quantity to minimise, as (sum, count); metrics: further sums; updates: non-trainable values by path."""

    mean: Mean
    metrics: dict[str, Mean]
    updates: dict[str, jax.Array]


def held_out_loss(unit: str, headline: bool = False) -> Metric:
    return Metric("loss", "Held-out loss", "less", "{:.3f}", unit, headline)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of every objective's config. `params` are the merged parameters, already in the compute dtype."""

    metrics: ClassVar[tuple[Metric, ...]] = (held_out_loss(""),)
    "what an evaluation reports; a number that is not declared is shown under its own name"
    causal: ClassVar[bool] = False
    "whether a token's loss depends on earlier tokens alone, so that attention kernels skip what lies ahead"
    makes_images: ClassVar[bool] = False
    "whether its model generates images (see inference/diffusion.py)"

    def loss(self, model: Model, params: Any, batch: dict, *, rng: jax.Array | None, train: bool) -> Loss:
        raise NotImplementedError(f"{type(self).__name__} does not define loss()")

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        """Scalars of one evaluation from its summed metrics, without the "eval/" in front."""
        return {k: float(m.compute()) for k, m in metrics.items()}
