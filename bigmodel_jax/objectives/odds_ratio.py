"""ORPO: preference training by the odds ratio of two answers, without a reference model."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.objectives.pairs import Pairs, Terms, Texts


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, accurate on both sides of -ln 2 (Mächler 2012)."""
    low = x < -math.log(2.0)
    # Each branch gets inputs at which it is finite, because gradients of both branches are
    # computed.
    near = jnp.log(-jnp.expm1(jnp.where(low, -1.0, x)))
    return jnp.where(low, jnp.log1p(-jnp.exp(jnp.where(low, x, -1.0))), near)


@dataclasses.dataclass(frozen=True)
class ORPO(Pairs):
    """Negative log-likelihood of the chosen text minus beta log sigmoid(log odds ratio).

    Source: arXiv:2403.07691, equations 6 and 7; TRL 1.16, ORPOTrainer. The odds are those of an
    answer's mean probability per token. The likelihood includes the prompt and is a mean over the
    tokens of a microbatch's chosen texts, as in TRL. If texts differ in length, it depends on how a
    batch is split. Batch: as for `Pairs`.
    """

    metrics = (
        *Pairs.metrics,
        Metric("nll", "Chosen text", "less", unit="nats per token"),
        Metric("log_odds_ratio", "Log odds ratio", "more"),
    )

    beta: NonNegative = 0.1
    "weight of the odds-ratio term"

    def terms(self, texts: Texts, nats, batch) -> Terms:
        # An answer of probability 1 has infinite odds, whose gradient is not a number.
        means = jnp.minimum(texts.means, -1e-7)
        # log odds = log p - log(1 - p); the product with (1, -1) is chosen minus rejected.
        odds = (means - log1mexp(means)) @ jnp.array([1.0, -1.0])
        likelihood = chosen_nats(nats, batch, texts.live)
        losses = likelihood.total / jnp.maximum(likelihood.count, 1.0) - self.beta * jax.nn.log_sigmoid(odds)
        found = {"nll": likelihood, "log_odds_ratio": metrics.weighted(odds, texts.live)}
        return Terms(losses, self.beta * means, found)


def chosen_nats(nats: jax.Array, batch: dict, live: jax.Array) -> Mean:
    """-log p per token of the chosen texts, without the first token of each text."""
    held = batch["segment_ids"] > 0
    follows = jnp.pad(held[:, 1:], ((0, 0), (0, 1))).astype(jnp.float32)
    return metrics.weighted(_chosen(nats), _chosen(follows) * live[:, None])


def _chosen(x: jax.Array) -> jax.Array:
    """The rows of chosen texts: (2B, T) -> (B, T)."""
    return x.reshape(-1, 2, x.shape[-1])[:, 0]
