"""`Pairs`, the base class of objectives on two answers to one prompt, and their metrics.

Shapes: B rows, T tokens; index [:, 0] is the chosen text and [:, 1] the rejected text.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Out
from bigmodel_jax.nn.head import Form
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss
from bigmodel_jax.objectives.cross_entropy import of_tokens

TEXTS = ("tokens", "targets", "weights", "segment_ids", "positions")
ACCURACY = Metric(
    "preference_accuracy",
    "Chosen answer rewarded more",
    "more",
    "{:.2%}",
    "of the held-out pairs",
    headline=True,
)
REWARDS = (
    Metric("chosen_reward", "Rewards", unit="mean over pairs", label="chosen"),
    Metric("rejected_reward", beside="chosen_reward", label="rejected"),
    Metric("reward_margin", "Reward margin", "more", unit="chosen less rejected"),
)
LOG_PROBS = (
    Metric("chosen_log_prob", "Log-probability of an answer", unit="nats", label="chosen"),
    Metric("rejected_log_prob", beside="chosen_log_prob", label="rejected"),
)


class Texts(NamedTuple):
    """A model's log-probabilities of the two answers of each row.

    log_probs (B, 2) float32: the sum over an answer's tokens, in nats.
    lengths (B, 2) float32: the number of tokens of each answer.
    live (B,): 1.0, and 0.0 for padding rows.
    """

    log_probs: jax.Array
    lengths: jax.Array
    live: jax.Array

    @property
    def means(self) -> jax.Array:
        """(B, 2): log-probabilities per token. A row without an answer gets -1, for which every
        loss is finite.
        """
        return jnp.where(self.lengths > 0, self.log_probs / metrics.divisor(self.lengths), -1.0)


def flat(batch: dict) -> dict:
    """Reshapes the texts (B, 2, T) of a batch to rows (2B, T). The two of a pair are neighbours."""
    texts = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in TEXTS if name in batch}
    # The reshape merges the sharded axis of rows with that of the two texts. The constraint says
    # that the merged rows stay sharded.
    return batch | {name: constrain(x, "batch", "seq") for name, x in texts.items()}


def in_two(x: jax.Array) -> jax.Array:
    """Splits rows into pairs: (2B,) -> (B, 2)."""
    return x.reshape(-1, 2)


def texts_of(nats: jax.Array, batch: dict) -> Texts:
    """The answers' log-probabilities and lengths of a flat batch.

    nats (2B, T) is -log p of each target; weights (2B, T) are 1.0 for targets inside an answer.
    """
    weights = batch["weights"].astype(jnp.float32)
    lengths = in_two(jnp.sum(weights, axis=-1))
    return Texts(in_two(-jnp.sum(nats * weights, axis=-1)), lengths, (lengths[:, 0] > 0).astype(jnp.float32))


def reported(rewards: jax.Array, live: jax.Array) -> dict[str, Mean]:
    """The metrics of ACCURACY and REWARDS, from rewards (B, 2)."""
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    found = {"chosen_reward": chosen, "rejected_reward": rejected, "reward_margin": chosen - rejected}
    found["preference_accuracy"] = chosen > rejected
    return {name: metrics.weighted(x, live) for name, x in found.items()}


class Terms(NamedTuple):
    """The result of an objective on pairs.

    nats (B,): the loss of each pair.
    rewards (B, 2): the reward of each answer.
    metrics: further metrics.
    """

    nats: jax.Array
    rewards: jax.Array
    metrics: dict[str, Mean]


@dataclasses.dataclass(frozen=True)
class Pairs(Objective):
    """Base class of the objectives on pairs of answers. The loss is the mean over pairs.

    A subclass defines `terms`. Batch: tokens, targets, segment_ids, positions (B, 2, T) int32;
    weights (B, 2, T) float32, 1 for targets inside the answer and 0 in the prompt.
    """

    reads: ClassVar[tuple[str, ...]] = ("targets", "weights")
    causal: ClassVar[bool] = True
    texts: ClassVar[int] = 2
    metrics: ClassVar[tuple[Metric, ...]] = (
        ACCURACY,
        held_out_loss("nats per pair", headline=True),
        *REWARDS,
        *LOG_PROBS,
    )

    logits: Form = "auto"
    '"whole" logits in memory, or "blocks" of the vocabulary; auto: blocks if large'

    def terms(self, texts: Texts, nats: jax.Array, batch: dict) -> Terms:
        """The losses and rewards of the pairs; nats (2B, T) is -log p of each target of the flat
        batch.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define terms()")

    def inputs(self, batch, rng):
        return flat(batch), rng

    def score(self, out, batch, *, params, train) -> Loss:
        nats = nats_of(out, batch, self.logits)
        texts = texts_of(nats, batch)
        terms = self.terms(texts, nats, batch)
        mean = metrics.weighted(terms.nats, texts.live)
        sums = {"loss": mean} | reported(terms.rewards, texts.live) | terms.metrics
        for i, name in enumerate(("chosen_log_prob", "rejected_log_prob")):
            sums[name] = metrics.weighted(texts.log_probs[:, i], texts.live)
        return with_losses(mean, sums, out)


def nats_of(out: Out, batch: dict, form: Form) -> jax.Array:
    """(2B, T): -log p of each target of a flat batch, in nats."""
    return of_tokens(out, out.value, batch["targets"], form)[0].astype(jnp.float32)


def with_losses(mean: Mean, sums: dict[str, Mean], out: Out) -> Loss:
    """Adds the model's auxiliary losses, which are means, to the loss, each times the count."""
    objective = mean.total
    for name, value in out.losses.items():
        sums = sums | {name: Mean(value * mean.count, mean.count)}
        objective = objective + value * mean.count
    return Loss(Mean(objective, mean.count), sums, out.updates)
