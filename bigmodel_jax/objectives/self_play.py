"""Policy and value learning from self-play games with search (Silver et al. 2017,
arXiv:1712.01815).
"""

import dataclasses

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.data.games.matches import PAIRINGS
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss


def _win_metrics() -> tuple[Metric, ...]:
    found = []
    for name, (opponent, searched) in PAIRINGS.items():
        title = f"Wins against {opponent}{'' if searched else ', without search'}"
        headline = name == "win_minimax"
        found.append(Metric(name, title, "more", "{:.1%}", "of all games; a draw is no win", headline, label=title))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class SelfPlay(Objective):
    """Cross-entropy with the search's policy plus the squared error of the value.

    Batch: board (B, 6, 7, 2), search_policy (B, K), outcome (B,) in -1 .. 1 for the player to move,
    legal (B, K) and weights (B,). The model returns (B, K + 1): K logits, then the value. An
    evaluation batch also has won (B,), 0 or 1, and pairing (B,), the index in PAIRINGS of the match
    that the row's game belongs to, or -1.
    """

    reads = ("board", "search_policy", "outcome", "legal", "weights")
    endings = ("games",)
    metrics = (
        held_out_loss("cross-entropy + squared error"),
        Metric("policy_loss", "Cross-entropy with the search's policy", "less", "{:.3f}", "nats"),
        Metric("value_loss", "Squared error of the value", "less", "{:.3f}"),
        *_win_metrics(),
    )

    value_weight: NonNegative = 1.0  # weight of the squared error of the value

    def score(self, out, batch, *, params, train) -> Loss:
        moves = batch["search_policy"].shape[-1]
        if out.value.shape[-1] != moves + 1:
            raise ValueError(f"model.num_moves = {out.value.shape[-1] - 1}: the data has {moves} moves")
        value = out.value.astype(jnp.float32)
        policy, squared = losses(value, batch)
        mean = metrics.weighted(policy + self.value_weight * squared, batch["weights"])
        sums = {"loss": mean, "policy_loss": metrics.weighted(policy, batch["weights"])}
        sums["value_loss"] = metrics.weighted(squared, batch["weights"])
        if not train and "pairing" in batch:
            for number, name in enumerate(PAIRINGS):
                sums[name] = metrics.weighted(batch["won"], (batch["pairing"] == number).astype(jnp.float32))
        return Loss(mean, sums, out.updates)


def losses(value: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy, squared error), each (B,), from outputs (B, K + 1). Illegal moves
    are masked.
    """
    legal = batch["legal"] > 0
    # -1e9 rather than -inf: 0 * -inf would be NaN in the gradient.
    log_policy = jax.nn.log_softmax(jnp.where(legal, value[:, :-1], -1e9))
    policy = -jnp.sum(jnp.where(legal, batch["search_policy"] * log_policy, 0.0), -1)
    return policy, jnp.square(value[:, -1] - batch["outcome"])
