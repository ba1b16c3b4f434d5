"""Metrics as sums: `Mean(total, count)` adds over microbatches, batches and devices, and divides
once."""

import dataclasses
import re
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class Mean:
    """A weighted mean before its division.

    total: the weighted sum. count: the sum of weights; 0 marks a plain sum, such as a confusion
    matrix.
    """

    total: Any
    count: Any

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> Any:
        """The mean, in the shape of `total`; `total` itself where the count is 0."""
        return self.total / divisor(self.count)


def divisor(count: Any) -> Any:
    """`count` where it is above 0, else 1.

    A divisor of 1 leaves a plain sum as it is and avoids 0 / 0.

    A sum of weights may lie between 0 and 1, so a floor of 1 would make its mean too small.
    """
    where = jnp.where if isinstance(count, jax.Array) else np.where
    return where(count > 0, count, 1)


@struct.dataclass
class Rows:
    """Values of single examples, for metrics that are not sums.

    values: (N, ...). weights: (N,), 0 for padding rows. Evaluation batches are added on the host.
    """

    values: Any
    weights: Any

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(np.concatenate([self.values, other.values]), np.concatenate([self.weights, other.weights]))


FORM = re.compile(r"[^{}]{0,20}\{:,?(\.\d{1,2})?[efg%]?\}[^{}]{0,20}")


@dataclasses.dataclass(frozen=True)
class Metric:
    """Describes one number of an evaluation, for plots, reports, trackers and the best checkpoint.

    - name: the key, without "eval/"
    - title: the plot's title
    - better: the direction of improvement; "" if neither direction is better
    - form: a format for `str.format`; unit: what the number counts
    - headline: whether runs are judged by it; the first headline metric of a run stands for the run
    - beside: the metric in whose plot it is drawn; "" = a plot of its own
    - level: whether it is the level of chance or of a simple method, drawn as a line
    - label: its name at the end of a curve
    """

    name: str
    title: str = ""
    better: Literal["", "less", "more"] = ""
    form: str = "{:.4g}"
    unit: str = ""
    headline: bool = False
    beside: str = ""
    level: bool = False
    label: str = ""

    def __post_init__(self):
        if not FORM.fullmatch(self.form):  # a config from another person could ask for a width of a billion
            raise ValueError(
                f"metric {self.name!r}: form = {self.form!r}; it must be like '{{:.3f}}' or '{{:.1%}} of all'"
            )


def add(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The sum of two dicts of metrics with the same keys, key by key."""
    return {k: a[k] + b[k] for k in a}


def weighted(values: jax.Array, weights: jax.Array) -> Mean:
    """The mean of `values` under `weights` of the same shape, both summed in float32."""
    chex.assert_equal_shape((values, weights))  # shapes (B, 1) and (B,) would broadcast to all pairs
    weights = weights.astype(jnp.float32)
    return Mean(jnp.sum(values.astype(jnp.float32) * weights), jnp.sum(weights))


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the largest logit is the label's, else 0.0; logits (..., C), labels (...)."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def confusion(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Mean:
    """The confusion matrix (C, C), [label, prediction], as weighted counts.

    logits: (B, C). labels, weights: (B,).
    """
    chex.assert_rank((logits, labels, weights), (2, 1, 1))
    num_classes = logits.shape[-1]
    # A product of one-hot matrices counts all pairs at once, without a scatter.
    true = jax.nn.one_hot(labels, num_classes) * weights[:, None]
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), num_classes)
    # A count of 0 marks a plain sum.
    return Mean(true.T @ predicted, jnp.zeros(()))


def precision_recall_f1(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support (C,) of each class; 0 where undefined.

    matrix: a confusion matrix (C, C), [label, prediction].
    """
    matrix = np.asarray(matrix, np.float64)
    hits, predicted, support = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}
