"""Regression by least squares."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """Mean squared error over examples and outputs.

    Batch: target (B, K) float32, weights (B,) float32, and the model's inputs. An evaluation batch
    may have target_scale and target_mean (B, K); rmse, mse and mae are then in the target's
    original unit.
    """

    reads = ("target", "weights")
    predicts = "numbers"
    metrics = (
        Metric("rmse", "Root mean squared error", "less", unit="in the target's own unit", headline=True),
        Metric("mae", "Mean absolute error", "less", unit="in the target's own unit", beside="rmse", label="MAE"),
        Metric("mse", "Mean squared error", "less", unit="in the target's own unit, squared"),
        held_out_loss("squared error"),
        Metric("r2", "Variance explained (R²)", "more", "{:.3f}"),
    )

    row_metrics = tuple(metric for metric in metrics if metric.name in ("mae", "mse"))

    def score(self, out, batch, *, params, train) -> Loss:
        value, target, weights = out.value.astype(jnp.float32), batch["target"], batch["weights"].astype(jnp.float32)
        if value.shape != target.shape:
            raise ValueError(
                f"model.num_outputs: the model predicts {value.shape[1:]}, but a target has {target.shape[1:]}"
            )
        error = value - target
        mean = metrics.weighted(jnp.mean(jnp.square(error), axis=-1), weights)
        sums = {"loss": mean}
        if not train:
            sums |= spread(error, target, batch.get("target_scale", jnp.ones_like(target)), weights)
        return Loss(mean, sums, out.updates)

    def of_rows(self, out, batch):
        error = out.value.astype(jnp.float32) - batch["target"]
        # Data that scales its targets gives their standard deviation, which restores the original
        # unit.
        error = error * batch.get("target_scale", jnp.ones_like(error))
        values = {"mae": jnp.mean(jnp.abs(error), axis=-1), "mse": jnp.mean(jnp.square(error), axis=-1)}
        return {name: (value, batch["weights"].astype(jnp.float32)) for name, value in values.items()}

    def summarize(self, metrics_: dict[str, Mean]):
        sums = {k: np.asarray(m.total, np.float64) for k, m in metrics_.items() if k in SUMS}
        scalars = super().summarize({k: m for k, m in metrics_.items() if k not in SUMS})
        count = metrics.divisor(float(metrics_["loss"].count))
        # The sum of squared deviations is E[x^2] - E[x]^2, times the count.
        variation = sums["squares"] - sums["values"] ** 2 / count
        explained = 1.0 - np.divide(sums["errors"], variation, out=np.ones_like(variation), where=variation > 0)
        mse, mae = (float(sums[name].mean() / count) for name in ("scaled_errors", "absolute_errors"))
        return scalars | {"rmse": mse**0.5, "mse": mse, "mae": mae, "r2": float(explained.mean())}


SUMS = ("errors", "scaled_errors", "values", "squares", "absolute_errors")


def spread(error, target, scale, weights) -> dict[str, Mean]:
    """Sums (K,) over examples, from which rmse, mse, mae and R² follow.

    Targets must be centred near 0; float32 then suffices for the difference of the two sums in R².
    """
    zero = jnp.zeros(())
    columns = (jnp.square(error), jnp.square(error * scale), target, jnp.square(target), jnp.abs(error * scale))
    return {name: Mean(weights @ x, zero) for name, x in zip(SUMS, columns, strict=True)}
