"""A reward model: learns one number per answer from pairwise preferences."""

import dataclasses

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.params import Param, normal
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.models.base import Out
from bigmodel_jax.objectives import pairs
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss

HEAD = "reward"


@dataclasses.dataclass(frozen=True)
class RewardModel(Objective):
    """-log sigmoid(reward of the chosen answer - reward of the rejected answer).

    This is the model of Bradley & Terry (1952), as in arXiv:2203.02155, equation 1, and TRL 1.16,
    RewardTrainer. A reward is a linear function, {"reward": {"kernel": (D, 1)}}, of the last
    layer's output at a text's last token. Batch: tokens, segment_ids, positions (B, 2, T) int32,
    segment 0 after a text's end; weights (B, 2, T), all 0 for padding rows.
    """

    reads = ("weights", "segment_ids")
    causal = True
    texts = 2
    instead_of_texts = "it scores texts; `export --format huggingface` writes it as a model of one score"
    answers_by = HEAD
    metrics = (pairs.ACCURACY, held_out_loss("nats per pair", headline=True), *pairs.REWARDS)

    center: NonNegative = 0.0
    """weight of the squared sum of a pair's rewards, which centres them (arXiv:2312.09244, equation
    2)"""

    def parameters(self, model):
        if not hasattr(model, "embed_dim"):
            raise ValueError(
                f"objective: RewardModel reads the last layer of a decoder; {type(model).__name__} has none"
            )
        return {HEAD: {"kernel": Param((model.embed_dim, 1), ("embed", None), normal(0.02))}}

    def inputs(self, batch, rng):
        return pairs.flat(batch), rng

    def score(self, out, batch, *, params, train) -> Loss:
        live = pairs.in_two(batch["weights"].astype(jnp.float32).sum(-1))[:, 0] > 0
        rewards = pairs.in_two(rewards_of(out, batch["segment_ids"], params[HEAD]["kernel"]))
        losses = -jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1]) + self.center * jnp.square(rewards.sum(-1))
        mean = metrics.weighted(losses, live)
        return pairs.with_losses(mean, {"loss": mean} | pairs.reported(rewards, live), out)


def rewards_of(out: Out, segment_ids: jax.Array, kernel: jax.Array) -> jax.Array:
    """(N,) float32: the head's output at the last token of each of the texts (N, T)."""
    if out.head is None:
        raise ValueError(
            "objective: RewardModel reads the last layer of a decoder, and this model returns logits alone"
        )
    last = jnp.maximum((segment_ids > 0).sum(-1), 1) - 1
    # A product with a one-hot vector replaces a gather, so a sequence that is sharded over the mesh
    # stays where it is.
    here = jax.nn.one_hot(last, segment_ids.shape[-1], dtype=jnp.float32)
    state = jnp.einsum("ntd,nt->nd", out.head.x.astype(jnp.float32), here)
    return (state @ kernel.astype(jnp.float32))[:, 0]
