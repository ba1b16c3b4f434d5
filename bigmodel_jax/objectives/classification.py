"""One label per example."""

import dataclasses

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
    """Mean cross-entropy in nats. Batch: label (B,) int32, weights (B,) float32, and what the model reads."""

    reads = ("label", "weights")
    metrics = (
        Metric("accuracy", "Accuracy", "more", "{:.2%}", headline=True, label="acc."),
        Metric("macro_f1", "Macro F1", "more", "{:.2%}", "mean over classes", beside="accuracy", label="F1"),
        held_out_loss("nats per example"),
    )

    label_smoothing: ShareBelowOne = 0.0

    def score(self, out, batch, *, params, train) -> Loss:
        logits, labels, weights = out.value, batch["label"], batch["weights"].astype(jnp.float32)
        nats, _ = cross_entropy(logits, labels)
        mean = metrics.weighted(nats, weights)
        sums = {"loss": mean, "accuracy": metrics.weighted(metrics.correct(logits, labels), weights)}
        if not train:
            sums["confusion"] = metrics.confusion(logits, labels, weights)
        elif self.label_smoothing:
            soft = optax.smooth_labels(jnp.eye(logits.shape[-1])[labels], self.label_smoothing)
            mean = metrics.weighted(optax.softmax_cross_entropy(logits.astype(jnp.float32), soft), weights)
        return Loss(mean, sums, out.updates)

    def summarize(self, metrics_: dict[str, Mean]):
        sums = dict(metrics_)
        matrix = np.asarray(sums.pop("confusion").total)
        f1 = metrics.precision_recall_f1(matrix)["f1"]
        return super().summarize(sums) | {"macro_f1": float(f1.mean())}

    def tables(self, metrics_: dict[str, Mean]):
        return {"confusion": np.asarray(metrics_["confusion"].total).astype(int).tolist()}
