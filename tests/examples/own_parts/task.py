"""Next-token prediction with label smoothing, and a metric of its own: how often the target is
among the first five."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import ShareBelowOne
from bigmodel_jax.objectives import Loss, Objective


@dataclasses.dataclass(frozen=True)
class Smoothed(Objective):
    metrics = (
        Metric("in_first_five", "Target among the first five", "more", "{:.1%}", headline=True),
        *Objective.metrics,
    )

    smoothing: ShareBelowOne = 0.1

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        out = model.apply(params, batch, rng=rng, train=train)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["targets"], out.value.shape[-1]), self.smoothing)
        mean = metrics.weighted(optax.softmax_cross_entropy(out.value, targets), batch["weights"])
        first = jax.lax.top_k(out.value, 5)[1]
        among = jnp.any(first == batch["targets"][..., None], axis=-1)
        return Loss(mean, {"loss": mean, "in_first_five": metrics.weighted(among, batch["weights"])}, out.updates)
