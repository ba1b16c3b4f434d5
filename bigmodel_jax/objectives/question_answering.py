"""Extractive question answering: the model finds the answer's first and last token in a text."""

import dataclasses

import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Objective):
    """Mean cross-entropy in nats of the answer's first and last token.

    Source: Devlin et al., arXiv:1810.04805, section 4.2. Batch: start, end (B,) int32, the answer's
    first and last position in the row; weights (B,) float32; and the model's inputs. The model
    returns logits (B, T, 2).
    """

    reads = ("start", "end", "weights")
    metrics = (
        Metric("exact_match", "Exact match", "more", "{:.2%}", "of the answers, first and last token", headline=True),
        Metric("f1", "F1 of answers", "more", "{:.2%}", "tokens shared", beside="exact_match", label="F1"),
        held_out_loss("nats per example"),
    )

    def score(self, out, batch, *, params, train) -> Loss:
        weights = batch["weights"].astype(jnp.float32)
        ends = [(out.value[..., n], batch[name]) for n, name in enumerate(("start", "end"))]
        nats = sum(cross_entropy(logits, places)[0] for logits, places in ends) / 2
        mean = metrics.weighted(nats, weights)
        exact = metrics.correct(*ends[0]) * metrics.correct(*ends[1])
        sums = {"loss": mean, "exact_match": metrics.weighted(exact, weights)}
        if not train:
            predicted = [jnp.argmax(logits, axis=-1) for logits, _ in ends]
            sums["f1"] = metrics.weighted(shared(*predicted, batch["start"], batch["end"]), weights)
        return Loss(mean, sums, out.updates)


def shared(start, end, true_start, true_end):
    """(B,): F1 between the tokens of the predicted and the true span; 0 if the end precedes the
    start.
    """
    # Spans that do not overlap give a number below 0.
    both = jnp.minimum(end, true_end) - jnp.maximum(start, true_start) + 1
    lengths = (end - start + 1) + (true_end - true_start + 1)
    return jnp.where(end >= start, 2 * jnp.maximum(both, 0) / jnp.maximum(lengths, 1), 0.0)
