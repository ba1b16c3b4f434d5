"""Two texts of one prompt in a row: their log-probabilities, and what is reported of the rewards that an objective gives them.

Shapes: B rows, T tokens; [:, 0] is the chosen text's and [:, 1] the rejected one's.
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
    """What a model says of the rows' answers: log_probs, the sum over an answer's tokens in nats, lengths, how many these
    are, each (B, 2) float32; live (B,): 0 for rows that only fill up a batch."""

    log_probs: jax.Array
    lengths: jax.Array
    live: jax.Array

    @property
    def means(self) -> jax.Array:
        """(B, 2): log-probabilities per token; -1 where a row has no answer, at which no form of loss is infinite."""
        return jnp.where(self.lengths > 0, self.log_probs / jnp.maximum(self.lengths, 1.0), -1.0)


def flat(batch: dict) -> dict:
    """The texts (B, 2, T) of a batch as rows (2B, T), the two of a pair side by side."""
    texts = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in TEXTS if name in batch}
    return batch | {name: constrain(x, "batch", "seq") for name, x in texts.items()}


def in_two(x: jax.Array) -> jax.Array:
    """(2B,) -> (B, 2)."""
    return x.reshape(-1, 2)


def texts_of(nats: jax.Array, batch: dict) -> Texts:
    """nats (2B, T): -log p of each target; batch: flat, weights (2B, T) 1.0 where a target belongs to an answer."""
    weights = batch["weights"].astype(jnp.float32)
    lengths = in_two(jnp.sum(weights, axis=-1))
    return Texts(in_two(-jnp.sum(nats * weights, axis=-1)), lengths, (lengths[:, 0] > 0).astype(jnp.float32))


def reported(rewards: jax.Array, live: jax.Array) -> dict[str, Mean]:
    """The metrics of ACCURACY and REWARDS; rewards (B, 2)."""
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    found = {"chosen_reward": chosen, "rejected_reward": rejected, "reward_margin": chosen - rejected}
    found["preference_accuracy"] = chosen > rejected
    return {name: metrics.weighted(x, live) for name, x in found.items()}


class Terms(NamedTuple):
    """An objective's view of a batch: nats (B,), each pair's loss; rewards (B, 2); further metrics."""

    nats: jax.Array
    rewards: jax.Array
    metrics: dict[str, Mean]


@dataclasses.dataclass(frozen=True)
class Pairs(Objective):
    """Base of the objectives over pairs of answers: a subclass says `terms`. The loss is the mean over pairs.

    Batch: tokens, targets, segment_ids, positions (B, 2, T) int32; weights (B, 2, T) float32, 1 where the target belongs to
    the answer and 0 in the prompt.
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
    'in memory ("whole") or block by block of the vocabulary; auto: blocks where they are large'

    def terms(self, texts: Texts, nats: jax.Array, batch: dict) -> Terms:
        """nats (2B, T): -log p of each target; batch: flat, as `score` gets it."""
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
    """(2B, T): -log p of each target of a flat batch."""
    return of_tokens(out, out.value, batch["targets"], form)[0].astype(jnp.float32)


def with_losses(mean: Mean, sums: dict[str, Mean], out: Out) -> Loss:
    """A loss with the model's auxiliary losses beside it, which weigh as much as in a mean over rows."""
    objective = mean.total
    for name, value in out.losses.items():
        sums = sums | {name: Mean(value * mean.count, mean.count)}
        objective = objective + value * mean.count
    return Loss(Mean(objective, mean.count), sums, out.updates)
