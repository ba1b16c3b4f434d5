"""Semantic segmentation: a class for each pixel, by cross-entropy and optionally Dice's loss.

Shapes: B batch, H height and W width of the mask, h and w those of the model's logits, K classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.metrics import Mean, Metric, precision_recall_f1, weighted
from bigmodel_jax.core.ranges import CountOrZero, NonNegative
from bigmodel_jax.metrics.labels import confusion_of_places, overlap
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import cross_entropy

SMOOTH = 1.0  # in pixels, added to Dice's numerator and denominator


@dataclasses.dataclass(frozen=True)
class Segmentation(Objective):
    """Mean cross-entropy in nats over all labelled pixels, plus `dice` times Dice's loss.

    Batch: mask (B, H, W) int32, weights (B,) float32, and the model's inputs. The model's logits
    (B, h, w, K) are resized bilinearly to the mask's size. Raises ValueError for a model that
    returns no logits per pixel.
    """

    reads = ("mask", "weights")
    predicts = "classes"
    metrics = (
        Metric(
            "mean_iou", "Mean intersection over union", "more", "{:.2%}", "over classes", headline=True, label="IoU"
        ),
        Metric(
            "pixel_accuracy", "Pixel accuracy", "more", "{:.2%}", "of labelled pixels", beside="mean_iou", label="px"
        ),
        Metric("mean_accuracy", "Mean recall", "more", "{:.2%}", "over classes"),
        Metric("mean_dice", "Mean Dice", "more", "{:.2%}", "over classes"),
        held_out_loss("nats per pixel"),
    )
    row_metrics = (Metric("pixel_accuracy", "Pixel accuracy", "more", "{:.2%}"),)
    endings = ("masks",)

    dice: NonNegative = 0.0
    "weight of Dice's loss, computed per image and added to the cross-entropy (arXiv:1606.04797)"
    ignore_label: CountOrZero = 255
    "pixels with this label are ignored in the loss and in metrics"
    pictures: CountOrZero = 8
    "number of held-out images on the report page, with mask and prediction; 0: none"

    def validate(self, config) -> None:
        of_data = getattr(config.data, "ignore_label", self.ignore_label)
        if of_data != self.ignore_label:
            raise ValueError(
                f"objective.ignore_label = {self.ignore_label}, and data.ignore_label = {of_data}; both must be the same"
            )

    def score(self, out, batch, *, params, train) -> Loss:
        logits, labels = at_size_of(out.value, batch["mask"]), batch["mask"]
        weights = self.labelled(labels, logits.shape[-1]) * batch["weights"].astype(jnp.float32)[:, None, None]
        # Ignored pixels have weight 0, but their label must still index a class.
        safe = jnp.where(weights > 0, labels, 0)
        nats = weighted(cross_entropy(logits, safe)[0], weights)
        right = weighted((jnp.argmax(logits, axis=-1) == safe).astype(jnp.float32), weights)
        mean, sums = nats, {"loss": nats, "pixel_accuracy": right}
        if self.dice:
            mean = Mean(nats.total + self.dice * dice_of_images(logits, safe, weights), nats.count)
            sums["loss"] = mean
        if not train:
            own = jnp.where(weights > 0, labels, -1)
            # A count of 0 marks a plain sum: `divisor` then divides by 1.
            sums["confusion"] = Mean(confusion_of_places(logits, own, batch["weights"]), jnp.zeros(()))
        return Loss(mean, sums, out.updates)

    def labelled(self, labels: jax.Array, num_classes: int) -> jax.Array:
        """1.0 for pixels that have a class, else 0.0."""
        return ((labels != self.ignore_label) & (labels >= 0) & (labels < num_classes)).astype(jnp.float32)

    def of_rows(self, out, batch):
        logits, labels = at_size_of(out.value, batch["mask"]), batch["mask"]
        known = self.labelled(labels, logits.shape[-1])
        right = jnp.sum(known * (jnp.argmax(logits, axis=-1) == labels), axis=(1, 2))
        pixels = jnp.sum(known, axis=(1, 2))
        weights = batch["weights"].astype(jnp.float32) * (pixels > 0)
        return {"pixel_accuracy": (right / jnp.maximum(pixels, 1), weights)}

    def summarize(self, metrics_: dict[str, Mean]):
        matrix = np.asarray(metrics_["confusion"].total)
        scores, here = precision_recall_f1(matrix), ~np.isnan(overlap(matrix))
        plain = {k: m for k, m in metrics_.items() if k != "confusion"}
        return super().summarize(plain) | {
            "mean_iou": _mean(overlap(matrix)[here]),
            "mean_dice": _mean(scores["f1"][here]),
            "mean_accuracy": _mean(scores["recall"][scores["support"] > 0]),
        }

    def tables(self, metrics_: dict[str, Mean]):
        """The table "overlap": for each class, IoU, precision, recall and number of pixels.

        The IoU is null for a class in neither masks nor predictions.
        """
        matrix = np.asarray(metrics_["confusion"].total)
        scores, found = precision_recall_f1(matrix), overlap(matrix)
        columns = (found, scores["precision"], scores["recall"], scores["support"])
        rows = np.stack(columns, axis=1).tolist()
        # NaN is the only number that differs from itself. JSON has no NaN.
        return {"overlap": [[None if x != x else x for x in row] for row in rows]}


def _mean(values: np.ndarray) -> float:
    """The mean over classes; 0 for no classes."""
    return float(values.mean()) if values.size else 0.0


def at_size_of(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits (B, h, w, K) in float32 at the mask's size, resized bilinearly as in transformers'
    SegFormer.
    """
    if logits.ndim != 4:
        raise ValueError(
            f"objective: Segmentation needs logits (rows, height, width, classes), and the model gives {logits.shape}; "
            "models that give them: segformer, unet, vit with model.head = 'pixels'"
        )
    shape = (*mask.shape, logits.shape[-1])
    logits = logits.astype(jnp.float32)
    return logits if logits.shape == shape else jax.image.resize(logits, shape, "bilinear")


def dice_of_images(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Dice's loss of each image, times its number of labelled pixels, summed over images.

    An image's loss is 1 - mean of 2 |p t| / (|p| + |t|) over the classes in its mask. Other classes
    are left out, because their ratio does not depend on the prediction. The weighting by pixels
    lets the sum add up over batches and devices in the same way as the cross-entropy. logits (B, H,
    W, K); labels, weights (B, H, W).
    """
    shares = jax.nn.softmax(logits, axis=-1) * weights[..., None]
    truth = jax.nn.one_hot(labels, logits.shape[-1]) * weights[..., None]
    both, size = (jnp.sum(x, axis=(1, 2)) for x in (shares * truth, shares + truth))
    here = (jnp.sum(truth, axis=(1, 2)) > 0).astype(jnp.float32)
    ratio = jnp.sum(here * (2 * both + SMOOTH) / (size + SMOOTH), axis=-1)
    loss = 1 - ratio / jnp.maximum(jnp.sum(here, axis=-1), 1)
    return jnp.sum(loss * jnp.sum(weights, axis=(1, 2)))
