"""Preference with no reference: the odds of the chosen answer against those of the rejected one, beside its own likelihood."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.objectives.pairs import Pairs, Terms, Texts


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, in the form that loses no digits on either side of -ln 2 (Mächler 2012)."""
    low = x < -math.log(2.0)
    # Each form is given numbers at which it is finite, since the gradient of both is computed.
    near = jnp.log(-jnp.expm1(jnp.where(low, -1.0, x)))
    return jnp.where(low, jnp.log1p(-jnp.exp(jnp.where(low, x, -1.0))), near)


@dataclasses.dataclass(frozen=True)
class ORPO(Pairs):
    """Likelihood of the chosen text, prompt included, less beta log sigmoid of the log odds ratio of the two answers
    (arXiv:2403.07691, equations 6 and 7; TRL 1.16, ORPOTrainer).

    The odds are those of an answer's probability per token. The likelihood is a mean over the tokens of the chosen texts of a
    microbatch, as in TRL, and so depends on how a batch is cut where texts have unequal lengths. Batch: as Pairs'.
    """

    metrics = (
        *Pairs.metrics,
        Metric("nll", "Chosen text", "less", unit="nats per token"),
        Metric("log_odds_ratio", "Log odds ratio", "more"),
    )

    beta: NonNegative = 0.1
    "weight of the odds ratio"

    def terms(self, texts: Texts, nats, batch) -> Terms:
        means = texts.means
        odds = (means - log1mexp(means)) @ jnp.array([1.0, -1.0])
        likelihood = chosen_nats(nats, batch, texts.live)
        losses = likelihood.total / jnp.maximum(likelihood.count, 1.0) - self.beta * jax.nn.log_sigmoid(odds)
        found = {"nll": likelihood, "log_odds_ratio": metrics.weighted(odds, texts.live)}
        return Terms(losses, self.beta * means, found)


def chosen_nats(nats: jax.Array, batch: dict, live: jax.Array) -> Mean:
    """-log p of every token of the chosen texts but the first of each, per token."""
    held = batch["segment_ids"] > 0
    follows = jnp.pad(held[:, 1:], ((0, 0), (0, 1))).astype(jnp.float32)
    return metrics.weighted(_chosen(nats), _chosen(follows) * live[:, None])


def _chosen(x: jax.Array) -> jax.Array:
    """(2B, T) -> (B, T)."""
    return x.reshape(-1, 2, x.shape[-1])[:, 0]
