"""Metrics as sums: `Mean(total, count)` adds over microbatches, batches and devices, and divides once."""

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
    """A weighted mean that has not been divided yet. `count` 0 marks a plain sum (a confusion matrix, say)."""

    total: Any
    count: Any

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def compute(self) -> Any:
        return self.total / np.maximum(self.count, 1)


@struct.dataclass
class Rows:
    """Values of single examples, kept apart where a metric is no sum: values (N, ...), weights (N,), 0 for filled-up rows.
    Added on the host, over evaluation batches."""

    values: Any
    weights: Any

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(np.concatenate([self.values, other.values]), np.concatenate([self.weights, other.weights]))


FORM = re.compile(r"[^{}]{0,20}\{:,?(\.\d{1,2})?[efg%]?\}[^{}]{0,20}")


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a reader must know of one number of an evaluation. Where it is declared, the page, the comparison of runs,
    the best checkpoint and the trackers know it.

    name: its key, without the "eval/" in front. better: which direction is an improvement; "" where neither is.
    form: how it is written, a format of `str.format`. unit: what it counts. headline: a run is judged by it; of several
    headlines, the first that a run has is its figure. beside: the metric in whose plot it is drawn; its own where empty.
    level: what chance or a simple method reaches, drawn as a line. label: its name at the end of a curve.
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
        if not FORM.fullmatch(self.form):  # a run's folder may be another person's: a width could be a billion
            raise ValueError(
                f"metric {self.name!r}: form = {self.form!r}; it must be like '{{:.3f}}' or '{{:.1%}} of all'"
            )


def add(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Key-wise sum of two metric dicts with the same keys."""
    return {k: a[k] + b[k] for k in a}


def weighted(values: jax.Array, weights: jax.Array) -> Mean:
    """Mean of `values` under `weights` of the same shape, both summed in float32."""
    chex.assert_equal_shape((values, weights))  # (B, 1) and (B,) would broadcast to a mean over all pairs
    weights = weights.astype(jnp.float32)
    return Mean(jnp.sum(values.astype(jnp.float32) * weights), jnp.sum(weights))


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the largest logit is the label's; logits (..., C), labels (...)."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def confusion(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Mean:
    """Counts (C, C) of [label, prediction]; logits (B, C), labels and weights (B,)."""
    chex.assert_rank((logits, labels, weights), (2, 1, 1))
    num_classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, num_classes) * weights[:, None]
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), num_classes)
    return Mean(true.T @ predicted, jnp.zeros(()))


def precision_recall_f1(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class precision, recall, F1 and support (C,) of a confusion matrix [label, prediction]; 0 where undefined."""
    matrix = np.asarray(matrix, np.float64)
    hits, predicted, support = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}
