"""Object detection as in DETR: each object is matched with one query; other queries learn "no
object".

The matching is the assignment of least cost (Hungarian algorithm; Carion et al., arXiv:2005.12872,
section 3.1). optax's solver runs inside the compiled step, so queries and objects stay on their
devices and no process waits for the host. The rows of a batch are solved in parallel. The time
grows with queries x objects^2. `data.max_objects` bounds the number of objects.

Shapes: B batch, Q queries, M objects, K classes, L layers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from optax import assignment

from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import Count, CountOrZero, NonNegative
from bigmodel_jax.metrics import detections
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss

WORST = 1e9  # the cost of a pair whose cost is not finite


@dataclasses.dataclass(frozen=True)
class Detection(Objective):
    """DETR's loss: cross-entropy of all queries, and L1 and generalised IoU of the matched boxes.

    The model returns {"logits": (B, Q, K + 1), "boxes": (B, Q, 4)}. The last class is "no object".
    A box is centre, width and height in 0 .. 1. In training it also returns the outputs of earlier
    layers, "layer_logits" and "layer_boxes" (B, L - 1, Q, ...), and each layer has a matching and a
    loss of its own. Batch: boxes (B, M, 4), classes (B, M) int32 with -1 for no object, weights
    (B,).

    The cross-entropy is a mean over queries in which queries without an object weigh `no_object`.
    The box losses are means over objects.
    """

    reads = ("boxes", "classes", "weights")
    metrics = (
        Metric("map50", "mAP@.5", "more", "{:.2%}", "over classes", headline=True, label="mAP50"),
        Metric("map", "mAP@[.5:.95]", "more", "{:.2%}", "over classes", beside="map50", label="mAP"),
        Metric("map75", "mAP@.75", "more", "{:.2%}", "over classes"),
        Metric("class_loss", "Cross-entropy of queries", "less", "{:.3f}", "nats per query"),
        Metric("l1", "L1 of matched boxes", "less", "{:.4f}", "shares of the picture"),
        Metric("iou_loss", "1 - GIoU of matched boxes", "less", "{:.3f}"),
        held_out_loss("per object"),
    )
    whole_batch = True  # cross-entropy and box losses have different denominators
    endings = ("boxes",)

    no_object: NonNegative = 0.1
    "weight, in the cross-entropy, of queries without an object"
    l1: NonNegative = 5.0
    "weight of the L1 distance in the loss and in the matching cost"
    iou: NonNegative = 2.0
    "weight of 1 - GIoU (arXiv:1902.09630) in the loss and in the matching cost"
    early_matches: Count = 1
    """queries matched with each object in all layers but the last; more speed up learning
    (one-to-many matching: Jia et al., arXiv:2207.13080); 1: DETR"""
    pictures: CountOrZero = 8
    "number of held-out images on the report page, with true and found boxes; 0: none"

    def score(self, out, batch, *, params, train) -> Loss:
        layers = layers_of(out.value)
        # Several copies of an object let several queries match it.
        several = batch | {k: jnp.repeat(batch[k], self.early_matches, axis=1) for k in ("boxes", "classes")}
        parts = [self.layer(*layer, several) for layer in layers[:-1]] + [self.layer(*layers[-1], batch)]
        objects = parts[-1]["objects"]
        total = sum(p["class_loss"] + self.l1 * p["l1"] + self.iou * p["iou_loss"] for p in parts)
        # The parts are means over objects. Multiplied by the count, they add up over batches.
        mean = Mean(total * objects, objects)
        last = {name: Mean(parts[-1][name] * objects, objects) for name in ("class_loss", "l1", "iou_loss")}
        sums = {"loss": mean} | last
        if not train:
            logits, boxes = layers[-1]
            found = detections.counts(*found_of(logits, boxes), batch, logits.shape[-1] - 1)
            sums |= {name: Mean(x, jnp.zeros(())) for name, x in found.items()}
        return Loss(mean, sums, out.updates)

    def layer(self, logits: jax.Array, boxes: jax.Array, batch: dict) -> dict[str, jax.Array]:
        """The three losses of one layer's outputs, and the number of objects (at least 1)."""
        true, classes = batch["boxes"], batch["classes"]
        rows = batch["weights"].astype(jnp.float32)
        here = (classes >= 0) & (rows > 0)[:, None]
        query = match(logits, boxes, true, classes, here, self.l1, self.iou)
        objects = jnp.maximum(jnp.sum(here), 1).astype(jnp.float32)
        none = logits.shape[-1] - 1
        # Queries without a matched object keep the label "no object".
        labels = jnp.full(logits.shape[:2], none)
        labels = jax.vmap(lambda row, q, c: row.at[q].set(c))(labels, query, jnp.where(here, classes, none))
        weights = jnp.where(labels == none, self.no_object, 1.0) * rows[:, None]
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
        matched = jnp.take_along_axis(boxes, query[..., None], axis=1)
        l1 = jnp.sum(jnp.abs(matched - true), axis=-1)
        # Positions without an object get the whole picture as their box, because the gradient for
        # an empty box is not finite.
        whole = jnp.array([0.5, 0.5, 1.0, 1.0])
        iou = generalized_iou(corners(matched), corners(jnp.where(here[..., None], true, whole)))
        return {
            # The bound avoids 0 / 0 in a batch of padding alone.
            "class_loss": jnp.sum(nats * weights) / jnp.maximum(jnp.sum(weights), 1e-9),
            "l1": jnp.sum(l1 * here) / objects,
            "iou_loss": jnp.sum((1 - iou) * here) / objects,
            "objects": objects,
        }

    def summarize(self, metrics_: dict[str, Mean]):
        plain = {k: m for k, m in metrics_.items() if k not in detections.COUNTS}
        counted = {k: np.asarray(metrics_[k].total) for k in detections.COUNTS}
        return super().summarize(plain) | detections.summary(counted)

    def tables(self, metrics_: dict[str, Mean]):
        """The table "precision_by_class".

        It has, for each class, average precision at overlap .5 and over .5 to .95, and the number
        of true boxes. The precisions are null for a class without true boxes.
        """
        counted = {k: np.asarray(metrics_[k].total) for k in detections.COUNTS}
        precision, objects = detections.average_precisions(counted), counted["objects"]
        rows = zip(precision[0].tolist(), precision.mean(axis=0).tolist(), objects.tolist(), strict=True)
        # NaN differs from itself, and JSON has no NaN.
        return {"precision_by_class": [[None if x != x else x for x in row] for row in rows]}


def layers_of(value) -> list[tuple[jax.Array, jax.Array]]:
    """(logits, boxes) of each layer, the last layer last.

    Raises ValueError for a model that returns no boxes.
    """
    if not isinstance(value, dict) or not {"logits", "boxes"} <= value.keys():
        raise ValueError("objective: Detection needs a model that gives logits and boxes of queries; detr does")
    earlier = []
    if "layer_logits" in value:
        logits, boxes = (value[name].swapaxes(0, 1) for name in ("layer_logits", "layer_boxes"))
        earlier = list(zip(logits, boxes, strict=True))
    return [*earlier, (value["logits"], value["boxes"])]


def match(logits, boxes, true, classes, here, l1: float, iou: float) -> jax.Array:
    """The query matched with each object, (B, M) int32. All queries of a row differ.

    The cost of a pair is -probability of the class + l1 |difference| - iou GIoU. Padding objects
    get queries too. They cost the same with every query, so they never take a query from a real
    object.
    """
    shares = jax.nn.softmax(logits, axis=-1)
    of_class = jnp.take_along_axis(shares, jnp.maximum(classes, 0)[:, None, :], axis=2)
    distance = jnp.sum(jnp.abs(boxes[:, :, None] - true[:, None]), axis=-1)
    overlap = generalized_iou(corners(boxes)[:, :, None], corners(true)[:, None])
    cost = l1 * distance - of_class - iou * overlap
    cost = jnp.where(here[:, None], jnp.nan_to_num(cost, nan=WORST, posinf=WORST, neginf=WORST), 0.0)
    cost = jax.lax.stop_gradient(cost)  # (B, Q, M)

    def one(cost):
        queries, objects = assignment.hungarian_algorithm(cost)
        return jnp.zeros(cost.shape[1], jnp.int32).at[objects].set(queries.astype(jnp.int32))

    return jax.vmap(one)(cost)


def found_of(logits: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Found boxes as corners (B, Q, 4) in 0 .. 1, their likeliest class and its probability (B, Q).

    "No object" is left out of the classes.
    """
    shares = jax.nn.softmax(logits, axis=-1)[..., :-1]
    return corners(boxes), jnp.argmax(shares, axis=-1), jnp.max(shares, axis=-1)


def corners(boxes: jax.Array) -> jax.Array:
    """Converts boxes (..., 4) from centre, width and height to left, top, right and bottom."""
    half = boxes[..., 2:] / 2
    return jnp.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised IoU (...) of boxes (..., 4) given as left, top, right and bottom.

    It is the IoU minus the share of the smallest enclosing box that neither box covers.
    """
    overlap, union = detections.overlap_and_union(a, b)
    around = detections.area(
        jnp.concatenate([jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1)
    )
    return overlap / union - (around - union) / around
