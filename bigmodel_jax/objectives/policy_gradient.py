"""Policy gradients over groups of sampled responses: GRPO and its variants.

A group is the responses to one prompt. A row is one response. The advantages are computed before
the step (`advantages`), so microbatches and devices may split a group. `Loss.mean` has the
denominator of each form: responses (grpo, gspo), tokens of the whole batch (dapo), responses times
a constant (dr_grpo), or tokens of a microbatch, whose means are then averaged (bnpo).

Shapes: B rows, T tokens, P prompts, G responses of a group.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.params import Tree
from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Positive
from bigmodel_jax.core.user_code import FunctionName, find, name_of
from bigmodel_jax.models.base import ModelConfig, Out
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.nn import head_losses, lora
from bigmodel_jax.nn.head import Form as Logits
from bigmodel_jax.objectives.base import Judging, Loss, Objective
from bigmodel_jax.objectives.cross_entropy import of_tokens

Form = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo"]
ADAPTERS_OFF = "adapters_off"
LEAST_SPREAD = 1e-4  # added to a group's standard deviation, as in TRL


@dataclasses.dataclass(frozen=True)
class PolicyGradient(Objective):
    """PPO's clipped policy gradient (arXiv:1707.06347) with advantages relative to a group.

    Forms: GRPO arXiv:2402.03300; Dr. GRPO arXiv:2503.20783; DAPO arXiv:2503.14476; GSPO
    arXiv:2507.18071; bnpo as in TRL. All log-probabilities are those at temperature 1.

    Batch: tokens, targets (B, T) int32; weights (B, T) float32, 1 for targets that the policy
    sampled; advantages (B,); rollout_log_probs (B, T), the sampler's log-probabilities of the
    targets; old_log_probs (B, T), those of the weights that sampled, where these differ from the
    step's weights; reference_log_probs (B, T) where kl is above 0.
    """

    reads = ("targets", "weights", "advantages", "rollout_log_probs")
    causal = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("reward", "Reward", "more", "{:.3f}", "mean over held-out prompts", headline=True),
        Metric("response_length", "Response length", "", "{:.1f}", "tokens"),
        Metric("stopped", "Stopped responses", "", "{:.1%}"),
        Metric("entropy", "Entropy", "", "{:.3f}", "nats per token"),
        Metric("log_prob_gap", "Gap of log-probabilities", "less", "{:.2e}", "nats, sampling against training"),
    )

    form: Form = "grpo"
    "the variant of the loss"
    reward: tuple[FunctionName, ...] = ()
    """functions (prompt, response, record) -> number, summed; response is a text, prompt as in the
    record"""
    reward_weights: tuple[float, ...] = ()
    "one weight per function in `reward`; () = all 1"
    reward_seconds: Positive = 10.0
    "time limit of one call of a reward function"
    reward_errors: CountOrZero = 0
    "failed rewards per rollout that are logged and left out; one more saves and ends the run"
    advantage: Literal["group_std", "group_mean"] = "group_std"
    "rewards minus their group's mean; group_std also divides by the group's standard deviation"
    clip_low: NonNegative = 0.2
    "importance ratios are clipped below 1 - clip_low"
    clip_high: NonNegative = 0.2
    "importance ratios are clipped above 1 + clip_high; DAPO: 0.28"
    kl: NonNegative = 0.0
    "weight of the KL divergence from the reference"
    kl_estimator: Literal["k3", "weighted_k3"] = "k3"
    """Schulman's k3, or k3 times the importance ratio for an unbiased gradient (arXiv:2512.02556;
    as TRL)"""
    reference: str = ""
    """for kl: a run, named as in train.init_from, or adapters_off for the run's weights without
    adapters"""
    reference_storage: BaseConfig = BaseConfig()
    "how a reference run's weights are stored, as in adapters.base"
    lag_cap: NonNegative = 0.0
    "cap on token weights exp(old_log_probs - rollout_log_probs); 0 = all weights are 1"
    length: CountOrZero = 0
    "for dr_grpo: constant divisor of a response's summed loss, such as data.max_tokens"
    resamples: CountOrZero = 0
    """attempts to replace groups of equal rewards by other prompts (DAPO's dynamic sampling); 0 =
    none"""
    truncated: Literal["counted", "left_out"] = "counted"
    "whether responses cut off at data.max_tokens count in the loss"
    logits: Logits = "auto"
    '"whole" logits in memory, or "blocks" of the vocabulary; auto: blocks if large'

    def __post_init__(self):
        given = (self.reward,) if isinstance(self.reward, str) or callable(self.reward) else self.reward
        names = tuple(name_of("objective.reward", function) for function in given if function)
        object.__setattr__(self, "reward", names)

    def validate(self, config: Any) -> None:
        if not self.reward:
            raise ValueError("objective.reward is empty; name a function, such as 'my_rewards.py:equal_numbers'")
        for name in self.reward:
            find("objective.reward", name)
        if self.reward_weights and len(self.reward_weights) != len(self.reward):
            raise ValueError(
                f"objective.reward_weights = {self.reward_weights}: objective.reward names {len(self.reward)} functions; "
                "give one weight for each, or none"
            )
        if self.kl and not self.reference:
            raise ValueError(
                f"objective.kl = {self.kl:g} needs objective.reference: a run, such as the one of train.init_from, or "
                f"{ADAPTERS_OFF!r}"
            )
        if getattr(config.data, "group", 2) < 2:
            raise ValueError(
                f"data.group = {config.data.group}: {type(self).__name__} compares answers; it must be 2 or more"
            )
        if recorded := getattr(config.data, "recorded", 0):
            raise ValueError(
                f"data.recorded = {recorded}: {type(self).__name__} compares answers of the policy; it must be 0"
            )
        if self.form == "dr_grpo" and not self.length:
            raise ValueError("objective.form = 'dr_grpo' needs objective.length, such as the value of data.max_tokens")

    def judging(self) -> Judging:
        counts = self.truncated == "counted"
        return Judging(self.reward, self.reward_seconds, self.reward_errors, self.resamples, counts, self.kl > 0)

    # ---- the reference

    @property
    def compares_without_adapters(self) -> bool:
        return self.reference == ADAPTERS_OFF

    def parameters(self, model: ModelConfig) -> Tree:
        if not self.sources():
            if self.reference_storage != BaseConfig():
                raise ValueError(
                    f"objective.reference_storage with objective.kl = {self.kl:g} and objective.reference = "
                    f"{self.reference!r}: only another run's weights are stored; leave it out, or name a run with kl above 0"
                )
            return {}
        return {"reference": self.reference_storage.of_another(model.make().spec, "objective.reference_storage")}

    def sources(self) -> dict[str, str]:
        kept = self.kl and self.reference not in ("", ADAPTERS_OFF)
        return {"reference": self.reference} if kept else {}

    def reference_of(self, params: Tree) -> Tree:
        """The reference model's parameters, taken from those of the run."""
        if self.reference == ADAPTERS_OFF:
            return lora.without_adapters(params)
        return params["reference"]

    # ---- before the step

    def total(self, rewards: np.ndarray) -> np.ndarray:
        """The weighted sum (...,) of the reward functions' values (..., functions)."""
        return rewards @ np.asarray(self.reward_weights or [1.0] * len(self.reward), np.float64)

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Advantages (P, G) float32 of rewards (P, G).

        A reward of NaN, which stands for a failed call, counts in no mean and has advantage 0.
        """
        known = np.isfinite(rewards)
        num = np.maximum(known.sum(1, keepdims=True), 1)
        centred = np.where(known, rewards - np.where(known, rewards, 0.0).sum(1, keepdims=True) / num, 0.0)
        if self.advantage == "group_std":
            # As in TRL, the variance is that of a sample, with a divisor of n - 1.
            variance = np.square(centred).sum(1, keepdims=True) / np.maximum(num - 1, 1)
            centred = centred / (np.sqrt(variance) + LEAST_SPREAD)
        return centred.astype(np.float32)

    # ---- the step

    def log_probs(self, out: Out, batch: dict) -> jax.Array:
        """(B, T) log-probabilities of the targets, in nats."""
        return -of_tokens(out, out.value, batch["targets"], self.logits)[0]

    def entropy(self, out: Out) -> jax.Array:
        """(B, T) entropy in nats, without a gradient."""
        if out.head is not None:
            return head_losses.entropy(jax.lax.stop_gradient(out.head), self.logits)
        log_p = jax.nn.log_softmax(jax.lax.stop_gradient(out.value).astype(jnp.float32))
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def score(self, out, batch, *, params, train) -> Loss:
        weights, log_probs = batch["weights"].astype(jnp.float32), self.log_probs(out, batch)
        # Without old log-probabilities the current weights have sampled: the ratio is 1, and its
        # gradient is that of the log-probability.
        old = batch.get("old_log_probs", jax.lax.stop_gradient(log_probs))
        ratio = self.ratios(log_probs - old, weights)
        losses, held = self.clipped(ratio, batch["advantages"][:, None])
        losses = jnp.broadcast_to(losses, weights.shape)
        if self.lag_cap:
            # Truncated importance sampling: the sampler's probabilities differ from the training
            # step's, and the cap bounds the variance.
            losses *= jnp.minimum(jnp.exp(old - batch["rollout_log_probs"]), self.lag_cap)
        sums = {
            "log_prob_gap": metrics.weighted(jnp.abs(old - batch["rollout_log_probs"]), weights),
            "entropy": metrics.weighted(self.entropy(out), weights),
        }
        if self.kl:
            # The estimator k3 is exp(d) - d - 1 with d = log p_reference - log p. It is unbiased
            # and never negative.
            apart = batch["reference_log_probs"] - log_probs
            divergence = jnp.exp(apart) - apart - 1
            sums["kl"] = metrics.weighted(divergence, weights)
            losses += self.kl * (divergence * ratio if self.kl_estimator == "weighted_k3" else divergence)
        mean = self.mean(losses, weights)
        if not train:
            return Loss(mean, sums | held_out(batch, weights), out.updates)
        sums |= {"loss": mean, "clip_share": metrics.weighted(jnp.broadcast_to(held, weights.shape), weights)}
        for name, value in out.losses.items():
            sums[name] = Mean(value * mean.count, mean.count)
            mean = Mean(mean.total + value * mean.count, mean.count)
        return Loss(mean, sums, out.updates)

    def ratios(self, log_ratio: jax.Array, weights: jax.Array) -> jax.Array:
        """Importance ratios: (B, T) per token, or (B, 1) per response for gspo.

        gspo takes the geometric mean of a response's token ratios.
        """
        if self.form == "gspo":
            log_ratio = (log_ratio * weights).sum(1, keepdims=True) / tokens_of(weights)[:, None]
        return jnp.exp(log_ratio)

    def clipped(self, ratio: jax.Array, advantages: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Losses and whether the clip stops the gradient, both shaped as `ratio`; advantages (B,
        1).
        """
        low, high = 1 - self.clip_low, 1 + self.clip_high
        # The clip only stops updates that would move the ratio further away from 1.
        held = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        return -jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages), held

    def mean(self, losses: jax.Array, weights: jax.Array) -> Mean:
        """The loss with the form's denominator, so that sums over microbatches give the batch's
        loss.
        """
        rows, total = jnp.float32(len(weights)), jnp.sum(losses * weights)
        if self.form == "dapo":
            return Mean(total, weights.sum())
        if self.form == "bnpo":
            return Mean(total / metrics.divisor(weights.sum()), jnp.float32(1))
        if self.form == "dr_grpo":
            return Mean(total / self.length, rows)
        return Mean(jnp.sum((losses * weights).sum(1) / tokens_of(weights)), rows)


def tokens_of(weights: jax.Array) -> jax.Array:
    """(B,): the summed token weights of each response; 1 for a response without any."""
    return metrics.divisor(weights.sum(1))


def held_out(batch: dict, weights: jax.Array) -> dict[str, Mean]:
    """The evaluation's metrics of its rollouts. Rows without weight are padding."""
    rows = (weights.sum(1) > 0).astype(jnp.float32)
    found = {name: metrics.weighted(batch[name], rows) for name in ("reward", "stopped") if name in batch}
    return found | {"response_length": metrics.weighted(weights.sum(1), rows)}
