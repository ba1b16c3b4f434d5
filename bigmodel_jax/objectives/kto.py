"""KTO: learns preferences from single answers, each labelled as wanted or unwanted."""

import dataclasses

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import NonNegative, Positive
from bigmodel_jax.objectives import pairs
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.referenced import REFERENCE, Referenced


@dataclasses.dataclass(frozen=True)
class KTO(Referenced):
    """Raises the log-ratio of wanted answers above the KL estimate, and lowers that of unwanted
    ones.

    A log-ratio is log p(answer) - log p_reference(answer). Source: arXiv:2402.01306, equation 8;
    TRL 1.16, KTOTrainer.

    The KL estimate is the mean log-ratio, over the whole batch, of answers paired with prompts that
    they do not belong to. It is at least 0 and has no gradient. Batch: texts (B, 2, T) as in
    `Pairs`, where [:, 0] is the answer and [:, 1] another row's answer to the same prompt; label
    (B,) int32, 1 for a wanted answer; and the arrays of `Referenced`.
    """

    reads = ("targets", "weights", "label")
    whole_batch = True
    metrics = (
        held_out_loss("per answer", headline=True),
        Metric("chosen_reward", "Rewards", unit="mean over answers", label="wanted"),
        Metric("rejected_reward", beside="chosen_reward", label="unwanted"),
        Metric("reward_margin", "Reward margin", "more", unit="wanted less unwanted", headline=True),
        *pairs.LOG_PROBS,
        Metric("kl", "Distance from the reference", unit="nats per answer"),
    )

    beta: Positive = 0.1  # strength of the pull towards the reference
    wanted_weight: NonNegative = 1.0  # weight of wanted answers in the loss
    unwanted_weight: NonNegative = 1.0  # weight of unwanted answers in the loss

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        if self.reference != "cached":
            batch = batch | {REFERENCE: self.log_probs(model, self.reference_weights(params), batch)}
        reference = batch[REFERENCE].astype(jnp.float32)
        answers, others = (batch | {name: batch[name][:, i] for name in pairs.TEXTS} for i in (0, 1))
        # The mismatched texts need no backward pass, so they get a forward call of their own.
        elsewhere, _, _ = self._texts(model, jax.lax.stop_gradient(params), others, rng=None, train=False)
        log_probs, live, out = self._texts(model, params, answers, rng=rng, train=train)
        distance = metrics.weighted(elsewhere - reference[:, 1], live)
        kl = jnp.maximum(distance.total / jnp.maximum(distance.count, 1.0), 0.0)
        wanted = batch["label"] > 0
        ratios = log_probs - reference[:, 0]
        mean = metrics.weighted(self.values(ratios, wanted, kl), live)
        sums = {"loss": mean, "kl": Mean(kl * mean.count, mean.count)}
        for side, rows in (("chosen", live * wanted), ("rejected", live * ~wanted)):
            sums[f"{side}_reward"] = metrics.weighted(self.beta * ratios, rows)
            sums[f"{side}_log_prob"] = metrics.weighted(log_probs, rows)
        return pairs.with_losses(mean, sums, out)

    def values(self, ratios: jax.Array, wanted: jax.Array, kl: jax.Array) -> jax.Array:
        """(B,): the loss of each answer, from its log-ratio to the reference."""
        # A single answer has no rival, so its log-ratio is compared with the KL estimate.
        gain = jnp.where(wanted, ratios - kl, kl - ratios)
        weight = jnp.where(wanted, self.wanted_weight, self.unwanted_weight)
        return weight * (1.0 - jax.nn.sigmoid(self.beta * gain))

    def _texts(self, model, params, batch, *, rng, train):
        """For one text per row: log-probabilities (B,), a mask (B,) that is 0.0 for padding rows,
        and the model's output.
        """
        out = model.apply(params, batch, rng=rng, train=train)
        weights = batch["weights"].astype(jnp.float32)
        log_probs = -jnp.sum(pairs.nats_of(out, batch, self.logits) * weights, axis=-1)
        return log_probs, (weights.sum(-1) > 0).astype(jnp.float32), out

    def summarize(self, metrics):
        scalars = super().summarize(metrics)
        return scalars | {"reward_margin": scalars["chosen_reward"] - scalars["rejected_reward"]}
