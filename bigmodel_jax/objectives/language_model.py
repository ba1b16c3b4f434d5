"""Next-token prediction on packed text."""

import dataclasses
import math

import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.nn.head import Form
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import of_tokens


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Weighted mean cross-entropy over the targets, in nats.

    Batch: tokens, targets (B, T) int32; weights (B, T) float32; segment_ids, positions (B, T)
    int32; in evaluation target_bytes (B, T) int32, the number of UTF-8 bytes of each target's text.
    """

    reads = ("targets", "weights")
    texts = 1
    predicts = "classes"
    causal = True
    metrics = (
        Metric(
            "bits_per_byte", "Bits per byte", "less", "{:.3f}", "on the held-out text; lower is better", headline=True
        ),
        held_out_loss("nats per token", headline=True),
        Metric("perplexity", "Perplexity", "less", unit="per token", beside="loss"),
        Metric("accuracy", "Accuracy", "more", "{:.2%}"),
    )

    z_loss: NonNegative = 0.0  # weight of log(Z)^2, which bounds the logits' scale (PaLM, arXiv:2204.02311)
    logits: Form = "auto"  # "whole" logits in memory, or "blocks" of the vocabulary; auto: blocks if large

    def score(self, out, batch, *, params, train) -> Loss:
        return self.of_text(out, batch, train)

    def of_text(self, out, batch, train: bool, share: float = 1.0) -> Loss:
        """The loss with the cross-entropy multiplied by `share`, for other objectives to add to."""
        nats, log_z, likeliest = of_tokens(out, out.value, batch["targets"], self.logits)
        weights = batch["weights"].astype(jnp.float32)
        mean = metrics.weighted(nats, weights)
        sums = {"loss": mean}
        objective = mean.total if share == 1.0 else share * mean.total if share else jnp.zeros(())
        if self.z_loss:
            objective = objective + self.z_loss * jnp.sum(jnp.square(log_z) * weights)
        # An auxiliary loss is a mean. Multiplied by the count it is a sum, which adds up over
        # microbatches.
        for name, value in out.losses.items():
            sums[name] = Mean(value * mean.count, mean.count)
            objective = objective + value * mean.count
        if not train:
            sums["accuracy"] = metrics.weighted(likeliest == batch["targets"], weights)
            if "target_bytes" in batch:
                num_bytes = jnp.sum(batch["target_bytes"].astype(jnp.float32) * weights)
                sums["bits_per_byte"] = Mean(mean.total / math.log(2), num_bytes)
        return Loss(Mean(objective, mean.count), sums, out.updates)

    def summarize(self, metrics):
        scalars = super().summarize(metrics)
        # exp(700) is near the largest float. The loss of a diverged run must not overflow.
        return scalars | {"perplexity": math.exp(min(scalars["loss"], 700.0))}
