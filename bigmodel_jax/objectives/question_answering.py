"""Where in a text the answer stands."""

import dataclasses

import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Objective):
    """Mean cross-entropy in nats of the answer's first and last token (Devlin et al., arXiv:1810.04805, section 4.2).

    Batch: start, end (B,) int32, places of the answer in the row; weights (B,) float32; and what the model reads. The
    model gives (B, T, 2).
    """

    reads = ("start", "end", "weights")
    metrics = (
        Metric("exact_match", "Exact match", "more", "{:.2%}", "of the answers, first and last token", headline=True),
        held_out_loss("nats per example"),
    )

    def score(self, out, batch, *, params, train) -> Loss:
        weights = batch["weights"].astype(jnp.float32)
        ends = [(out.value[..., n], batch[name]) for n, name in enumerate(("start", "end"))]
        nats = sum(cross_entropy(logits, places)[0] for logits, places in ends) / 2
        mean = metrics.weighted(nats, weights)
        exact = metrics.correct(*ends[0]) * metrics.correct(*ends[1])
        return Loss(mean, {"loss": mean, "exact_match": metrics.weighted(exact, weights)}, out.updates)
