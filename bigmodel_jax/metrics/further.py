"""Additional metrics of an evaluation: built-in ones from METRICS, and functions of the user.

A metric is a function (out, batch) of the model's output that is traced into the evaluation step.
It returns one value per row (B,), one value per entry of the batch's weights, or a `Mean`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import metrics, user_code
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.metrics import labels
from bigmodel_jax.metrics.texts import own_metrics

OPTION = "eval.metrics"
PREFIX = f"{OPTION}/"  # this prefix stands before a metric's name among an evaluation's sums


@dataclasses.dataclass(frozen=True)
class Further:
    """An additional metric.

    metric: its name, title and number format on the report page.
    values: the function (out, batch) that returns per-row values or a `Mean`.
    finish: computes the final number from the summed `Mean`.
    """

    metric: Metric
    values: Callable[[Any, dict], Any]
    finish: Callable[[Mean], float] = lambda mean: float(mean.compute())


def _labels(batch: dict) -> jax.Array:
    """The class label of each row, or the target of each token."""
    name = next((name for name in ("label", "targets") if name in batch), None)
    if name is None:
        raise ValueError(f"the batch has neither 'label' nor 'targets' ({', '.join(batch)})")
    return batch[name]


def _top(k: int, out: Any, batch: dict) -> jax.Array:
    return labels.among_top(out.value, _labels(batch), k)


def _overlap(out: Any, batch: dict) -> Mean:
    weights = batch["weights"].astype(jnp.float32)
    return Mean(labels.confusion_of_places(out.value, _labels(batch), weights), jnp.zeros(()))


def _mean_overlap(mean: Mean) -> float:
    return float(np.nanmean(labels.overlap(mean.total)))


METRICS = {
    f"top{k}": Further(Metric(f"top{k}", f"Among the {k} likeliest", "more", "{:.2%}"), functools.partial(_top, k))
    for k in (2, 3, 5, 10, 20, 50, 100)
} | {
    "mean_iou": Further(
        Metric("mean_iou", "Mean intersection over union", "more", "{:.2%}", "mean over classes"),
        _overlap,
        _mean_overlap,
    )
}


def find(name: str) -> Further:
    """Returns the metric called `name`. Raises a one-line ValueError for an unknown name."""
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise ValueError(
            f"{OPTION} = {name!r} is no metric{nearest(name, METRICS)}; known: {', '.join(METRICS)}, or a function of your own"
        )
    (metric, *more), key = own_metrics(user_code.find(OPTION, name), name.rpartition(":")[2]), name.rpartition(":")[2]
    if more or metric.name != key:
        raise ValueError(
            f"{OPTION}: {name} declares {metric.name!r}; it must declare one metric, of its own name {key!r}"
        )
    return Further(metric, functools.partial(user_code.call, OPTION, name))


def declared(names: Iterable[str]) -> tuple[Metric, ...]:
    """The `Metric` declarations of the named metrics."""
    return tuple(find(name).metric for name in names)


def check(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for unknown names, and for names in `known`, the objective's metrics."""
    taken = set(known)
    for name in names:
        # A name of the objective's own metric is no further metric, so it is not looked up.
        own = name if name in taken else find(name).metric.name
        if own in taken:
            raise ValueError(f"{OPTION}: there are two metrics {own!r}; leave one out, or rename the function")
        taken.add(own)


def sums(names: Iterable[str], out: Any, batch: dict) -> dict[str, Mean]:
    """The named metrics' sums over one batch, which `summarize` finishes."""
    found = [find(name) for name in names]
    return {
        PREFIX + one.metric.name: summed(one.metric.name, one.values(out, batch), batch["weights"]) for one in found
    }


def summed(name: str, values: Any, weights: jax.Array) -> Mean:
    """The weighted sum of a metric's values. Raises ValueError where their shape is not that of the
    rows.
    """
    if isinstance(values, Mean):
        return values
    shape, of_rows = jnp.shape(values), weights.shape[:1]
    if shape not in (weights.shape, of_rows):
        allowed = " or ".join(map(str, dict.fromkeys((of_rows, weights.shape))))
        raise ValueError(f"{OPTION}: {name} gave an array of shape {shape}; it must give {allowed}, or a Mean")
    # A row counts once, however many of its tokens have a weight.
    if shape != weights.shape:
        weights = weights.reshape(len(weights), -1).max(axis=1)
    return metrics.weighted(jnp.asarray(values), weights)


def summarize(names: Iterable[str], total: dict[str, Mean]) -> dict[str, float]:
    """The numbers by metric name, from the sums over a whole evaluation."""
    found = [find(name) for name in names]
    return {one.metric.name: one.finish(total[PREFIX + one.metric.name]) for one in found}
