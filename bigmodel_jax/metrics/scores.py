"""Threshold metrics of a classifier's scores: ROC and precision-recall curves, and calibration.

Every metric is a sum over rows, counted in bins on the devices, so the result does not depend on
how rows are split into batches, devices and processes. A curve has one threshold per bin. Its area
equals the exact area for scores that are rounded to their bins.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.metrics import Mean, Metric, divisor

THRESHOLDS = 1024  # evenly spaced in log-odds, which resolves scores near 0 and 1
FURTHEST = 20.0  # larger log-odds fall into the outermost bins
MOST_CLASSES = 1024  # with more classes, the counts of a batch would be larger than its logits
CALIBRATION_BINS = 15  # Guo et al., arXiv:1706.04599, section 5

DECLARED = (
    Metric("roc_auc", "ROC area", "more", "{:.4f}", "one class against the others, mean over classes"),
    Metric(
        "average_precision",
        "Precision-recall area",
        "more",
        "{:.4f}",
        "average precision, mean over classes",
        beside="roc_auc",
        label="precision-recall",
    ),
    Metric("ece", "Calibration error", "less", "{:.2%}", f"expected, {CALIBRATION_BINS} bins", label="ECE"),
)
KEYS = ("scores", "calibration")


# ---------------------------------------------------------------- on the devices


def sums(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, Mean]:
    """Counts per bin for one batch; logits (B, C), labels and weights (B,)."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    hit = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    found = {"calibration": calibration_sums(confidence, hit, weights)}
    if logits.shape[-1] <= MOST_CLASSES:
        found["scores"] = threshold_sums(log_odds(log_probs), labels, weights)
    return found


def log_odds(log_probs: jax.Array) -> jax.Array:
    """log p / (1 - p) of each class; of two classes only that of class 1.

    The ROC curve of class 0 mirrors that of class 1, so one curve is enough.
    """
    # log(1 - p) by expm1 keeps its digits for p near 1. `tiny` avoids log(0).
    odds = log_probs - jnp.log(jnp.maximum(-jnp.expm1(log_probs), jnp.finfo(jnp.float32).tiny))
    return odds[:, 1:] if odds.shape[-1] == 2 else odds


def threshold_sums(odds: jax.Array, labels: jax.Array, weights: jax.Array) -> Mean:
    """Counts (C, 2, THRESHOLDS), indexed by [class, whether the row has that class, bin of its
    score].

    `odds` has shape (B, C), or (B, 1) for two classes. `labels` and `weights` have shape (B,).
    """
    num = odds.shape[-1]
    classes = jnp.arange(num) + (num == 1)
    own = (labels[:, None] == classes).astype(jnp.int32)
    bins = jnp.floor((jnp.clip(odds, -FURTHEST, FURTHEST) + FURTHEST) * (THRESHOLDS / (2 * FURTHEST)))
    bins = jnp.clip(bins.astype(jnp.int32), 0, THRESHOLDS - 1)
    # One scatter-add over flat cell numbers makes the histogram of (class, own, bin).
    places = (jnp.arange(num) * 2 + own) * THRESHOLDS + bins
    weights = jnp.broadcast_to(weights[:, None], places.shape).astype(jnp.float32)
    counts = jnp.zeros(num * 2 * THRESHOLDS).at[places.ravel()].add(weights.ravel())
    return Mean(counts.reshape(num, 2, THRESHOLDS), jnp.zeros(()))


def calibration_sums(confidence: jax.Array, hit: jax.Array, weights: jax.Array) -> Mean:
    """(3, CALIBRATION_BINS): rows, summed confidences and summed hits per bin. Arguments
    are (B,).
    """
    bins = jnp.clip((confidence * CALIBRATION_BINS).astype(jnp.int32), 0, CALIBRATION_BINS - 1)
    columns = jnp.stack([jnp.ones_like(confidence), confidence, hit]) * weights.astype(jnp.float32)
    return Mean(columns @ jax.nn.one_hot(bins, CALIBRATION_BINS), jnp.zeros(()))


# ---------------------------------------------------------------- on the host


@dataclasses.dataclass(frozen=True)
class Curve:
    """ROC and precision-recall curves of one class against all others, strictest threshold first.

    false_positives, true_positives: rates that rise from (0, 0) to (1, 1).
    precision: precision at each threshold.
    area: area under the ROC curve, by the trapezoidal rule.
    average_precision: precision averaged over the steps of recall.

    Numbers are NaN where the class has no rows, or has all rows.
    """

    false_positives: np.ndarray
    true_positives: np.ndarray
    precision: np.ndarray
    area: float
    average_precision: float


def curve(counts: np.ndarray) -> Curve:
    """The curves of one class. counts (2, bins): rows of other classes, and of this class, by
    rising score.
    """
    # Scores rise with the bin, so the reversed sums lower the threshold step by step.
    others, own = np.cumsum(np.asarray(counts, np.float64)[:, ::-1], axis=1)
    kept = np.flatnonzero(np.diff(others + own, prepend=0.0))  # a bin without rows moves no threshold
    others, own = (np.concatenate([[0.0], x[kept]]) for x in (others, own))
    with np.errstate(invalid="ignore"):
        rates = others / others[-1:], own / own[-1:]
        precision = np.divide(own, others + own, out=np.ones_like(own), where=others + own > 0)
    steps = np.diff(rates[1], prepend=0.0)
    return Curve(*rates, precision, float(np.trapezoid(rates[1], rates[0])), float(np.sum(steps * precision)))


def curves(metrics: dict[str, Mean]) -> list[tuple[int, Curve]]:
    """(class number, curve) for every class, from the summed output of `sums`."""
    if "scores" not in metrics:
        return []
    counts = np.asarray(metrics["scores"].total)
    return [(number + (len(counts) == 1), curve(of_class)) for number, of_class in enumerate(counts)]


def summarize(metrics: dict[str, Mean]) -> dict[str, float]:
    """The areas, averaged over classes where they are defined, and the expected
    calibration error.
    """
    found = {"ece": calibration_error(np.asarray(metrics["calibration"].total))}
    every = [one for _, one in curves(metrics)]
    for name, areas in (
        ("roc_auc", [c.area for c in every]),
        ("average_precision", [c.average_precision for c in every]),
    ):
        finite = [area for area in areas if np.isfinite(area)]
        found |= {name: float(np.mean(finite))} if finite else {}
    return found


def calibration_error(table: np.ndarray) -> float:
    """Expected calibration error: the mean of |confidence - accuracy| over bins, weighted by rows.

    `table` (3, bins) comes from `calibration_sums`. Source: Guo et al., arXiv:1706.04599, equation
    3.
    """
    rows, confidence, hits = np.asarray(table, np.float64)
    return float(np.abs(confidence - hits).sum() / divisor(rows.sum()))


# ---------------------------------------------------------------- for the page

MOST_CURVES = 9  # the page has as many colours; the classes with the lowest areas are drawn
POINTS = 64


def tables(metrics: dict[str, Mean]) -> dict[str, list]:
    """The tables from which the report page draws its charts, as lists of numbers.

    roc: [class, area, false positive rates, true positive rates] of the classes with the lowest
        areas.
    precision_recall: [class, average precision, recalls, precisions] of the same classes.
    calibration: [rows, mean confidence, accuracy] per bin.
    """
    rows, confidence, hits = np.asarray(metrics["calibration"].total, np.float64)
    per_row = divisor(rows)
    found = {"calibration": np.stack([rows, confidence / per_row, hits / per_row], axis=1).round(4).tolist()}
    drawn = [(number, one) for number, one in curves(metrics) if np.isfinite(one.area)]
    if drawn:
        worst = sorted(sorted(drawn, key=lambda item: item[1].area)[:MOST_CURVES])
        found["roc"] = [[n, c.area, *_thinned(c.false_positives, c.true_positives)] for n, c in worst]
        found["precision_recall"] = [
            [n, c.average_precision, *_thinned(c.true_positives, c.precision)] for n, c in worst
        ]
    return found


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """At most POINTS points of a curve, evenly spaced along its length."""
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    at = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS)))
    return x[at].round(4).tolist(), y[at].round(4).tolist()
