"""One label per example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import ShareBelowOne
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Mean cross-entropy in nats. Batch: label (B,) int32, weights (B,) float32, and what the model reads.

    A training batch with soft_label (B, classes) float32, whose rows add up to 1, is compared with that instead of the label;
    label smoothing gives each class its part of what it takes from all.
    """

    reads = ("label", "weights")
    takes = ("soft_label",)
    metrics = (
        Metric("accuracy", "Accuracy", "more", "{:.2%}", headline=True, label="acc."),
        Metric("macro_f1", "Macro F1", "more", "{:.2%}", "mean over classes", beside="accuracy", label="F1"),
        held_out_loss("nats per example"),
    )

    label_smoothing: ShareBelowOne = 0.0

    def score(self, out, batch, *, params, train) -> Loss:
        logits, labels, weights = out.value, batch["label"], batch["weights"].astype(jnp.float32)
        soft = batch.get("soft_label") if train else None
        nats = cross_entropy(logits, labels)[0] if soft is None else _of_shares(logits, soft)
        mean = metrics.weighted(nats, weights)
        sums = {"loss": mean, "accuracy": metrics.weighted(metrics.correct(logits, labels), weights)}
        if not train:
            sums["confusion"] = metrics.confusion(logits, labels, weights)
        elif self.label_smoothing:
            soft = jnp.eye(logits.shape[-1])[labels] if soft is None else soft
            mean = metrics.weighted(_of_shares(logits, optax.smooth_labels(soft, self.label_smoothing)), weights)
        return Loss(mean, sums, out.updates)

    def summarize(self, metrics_: dict[str, Mean]):
        sums = dict(metrics_)
        matrix = np.asarray(sums.pop("confusion").total)
        f1 = metrics.precision_recall_f1(matrix)["f1"]
        return super().summarize(sums) | {"macro_f1": float(f1.mean())}

    def tables(self, metrics_: dict[str, Mean]):
        return {"confusion": np.asarray(metrics_["confusion"].total).astype(int).tolist()}


def _of_shares(logits: jax.Array, shares: jax.Array) -> jax.Array:
    """(B,) nats between the classes' shares (B, classes) and what the logits say of them."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), shares.astype(jnp.float32))
