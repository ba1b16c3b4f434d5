"""Metrics of predicted class labels: top-k accuracy and the scores of a confusion matrix."""

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.metrics import divisor


def among_top(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """1.0 where the label is among the k largest logits, else 0.0.

    `logits` has shape (..., C), `labels` (...). Among equal logits the lower class number ranks
    first.
    """
    own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[..., None]
    # Counting the logits ahead of the label avoids sorting all classes.
    ahead = jnp.sum((logits > own) | ((logits == own) & before), axis=-1)
    return (ahead < k).astype(jnp.float32)


def averages(scores: dict[str, np.ndarray], matrix: np.ndarray) -> dict[str, dict[str, float]]:
    """Macro and micro averages: {"macro", "micro": {precision, recall, f1, support}}.

    `scores` is `core.metrics.precision_recall_f1(matrix)`. The macro average is the mean over
    classes. The micro average is taken over all rows. Each row has one label, so its precision,
    recall and F1 all equal the accuracy.
    """
    names, support = ("precision", "recall", "f1"), {"support": float(np.sum(matrix))}
    accuracy = float(np.trace(matrix) / divisor(np.sum(matrix)))
    macro = {name: float(scores[name].mean()) for name in names}
    return {"macro": macro | support, "micro": dict.fromkeys(names, accuracy) | support}


def overlap(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union (C,) of each class, from a confusion matrix [label, prediction].

    NaN for a class that occurs neither as a label nor as a prediction. Source: Everingham et al.
    2015, section 4.2.
    """
    matrix = np.asarray(matrix, np.float64)
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def confusion_of_places(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Confusion counts (C, C) of [label, prediction] over all positions, such as pixels.

    `logits` has shape (..., C), `labels` (...), and `weights` (...) or (B,). A position whose label
    is not a class number (255, for instance) does not count.
    """
    num_classes = logits.shape[-1]
    weights = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (labels.ndim - weights.ndim)), labels.shape)
    known = (labels >= 0) & (labels < num_classes)
    # One scatter-add makes the 2-D histogram: the cell number is label * classes + prediction.
    places = jnp.where(known, labels * num_classes + jnp.argmax(logits, axis=-1), 0)
    counted = jnp.where(known, weights, 0.0).astype(jnp.float32)
    counts = jnp.zeros(num_classes**2).at[places.ravel()].add(counted.ravel())
    return counts.reshape(num_classes, num_classes)
