"""Classification: one label per example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import ShareBelowOne
from bigmodel_jax.metrics import scores
from bigmodel_jax.metrics.labels import among_top, averages
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Mean cross-entropy in nats of one label per example.

    Batch: label (B,) int32, weights (B,) float32, and the model's inputs. A training batch may have
    soft_label (B, classes) float32, whose rows sum to 1 and replace the label. Label smoothing
    replaces the target p by (1 - label_smoothing) p + label_smoothing / classes.
    """

    reads = ("label", "weights")
    predicts = "classes"
    takes = ("soft_label",)
    metrics = (
        Metric("accuracy", "Accuracy", "more", "{:.2%}", headline=True, label="acc."),
        Metric("macro_f1", "Macro F1", "more", "{:.2%}", "mean over classes", beside="accuracy", label="F1"),
        Metric("macro_precision", "Macro precision", "more", "{:.2%}", "mean over classes", beside="macro_recall"),
        Metric("macro_recall", "Macro recall", "more", "{:.2%}", "mean over classes"),
        Metric("micro_f1", "Micro F1", "more", "{:.2%}", "over all rows"),
        Metric(
            "top5", "Among the 5 likeliest", "more", "{:.2%}", "of more than 5 classes", beside="accuracy", label="5"
        ),
        *scores.DECLARED,
        held_out_loss("nats per example"),
    )

    row_metrics = (
        metrics[0],
        Metric("positive_rate", "Predicted to be class 1", form="{:.2%}", unit="of two classes"),
        Metric("true_positive_rate", "Recall of class 1", "more", "{:.2%}", "of two classes"),
        Metric("false_positive_rate", "False alarms of class 1", "less", "{:.2%}", "of two classes"),
    )

    label_smoothing: ShareBelowOne = 0.0  # share of the target spread evenly over the classes

    def score(self, out, batch, *, params, train) -> Loss:
        logits, labels, weights = out.value, batch["label"], batch["weights"].astype(jnp.float32)
        soft = batch.get("soft_label") if train else None
        nats = cross_entropy(logits, labels)[0] if soft is None else _of_shares(logits, soft)
        mean = metrics.weighted(nats, weights)
        sums = {"loss": mean, "accuracy": metrics.weighted(metrics.correct(logits, labels), weights)}
        if not train:
            # A training step reports no table, so it does not compute the sums of one.
            sums["confusion"] = metrics.confusion(logits, labels, weights)
            sums |= scores.sums(logits, labels, weights)
            if logits.shape[-1] > 5:
                sums["top5"] = metrics.weighted(among_top(logits, labels, 5), weights)
        elif self.label_smoothing:
            soft = jnp.eye(logits.shape[-1])[labels] if soft is None else soft
            mean = metrics.weighted(_of_shares(logits, optax.smooth_labels(soft, self.label_smoothing)), weights)
        return Loss(mean, sums, out.updates)

    def of_rows(self, out, batch):
        labels, weights = batch["label"], batch["weights"].astype(jnp.float32)
        found = {"accuracy": (metrics.correct(out.value, labels), weights)}
        if out.value.shape[-1] == 2:
            positive = jnp.argmax(out.value, axis=-1)
            found["positive_rate"] = (positive, weights)
            found["true_positive_rate"] = (positive, weights * (labels == 1))
            found["false_positive_rate"] = (positive, weights * (labels == 0))
        return found

    def summarize(self, metrics_: dict[str, Mean]):
        matrix = np.asarray(metrics_["confusion"].total)
        means = averages(metrics.precision_recall_f1(matrix), matrix)
        # A confusion matrix and curves are no numbers: precision, recall and areas are computed
        # from them.
        plain = {k: m for k, m in metrics_.items() if k not in ("confusion", *scores.KEYS)}
        found = {f"macro_{name}": means["macro"][name] for name in ("f1", "precision", "recall")}
        found["micro_f1"] = means["micro"]["f1"]
        return super().summarize(plain) | found | scores.summarize(metrics_)

    def tables(self, metrics_: dict[str, Mean]):
        return {"confusion": np.asarray(metrics_["confusion"].total).astype(int).tolist()} | scores.tables(metrics_)


def _of_shares(logits: jax.Array, shares: jax.Array) -> jax.Array:
    """(B,) cross-entropy in nats between target probabilities `shares` (B, classes) and
    the logits.
    """
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), shares.astype(jnp.float32))
