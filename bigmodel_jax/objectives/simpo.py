"""Preference with no reference: the answers' probabilities per token, a margin apart."""

import dataclasses

import jax

from bigmodel_jax.core.ranges import NonNegative, Positive
from bigmodel_jax.objectives.pairs import Pairs, Terms, Texts


@dataclasses.dataclass(frozen=True)
class SimPO(Pairs):
    """-log sigmoid(beta (mean log p of the chosen - of the rejected answer) - gamma) (arXiv:2405.14734, equation 6; TRL 1.16,
    CPOTrainer with loss_type "simpo"). Batch: as Pairs'."""

    beta: Positive = 2.0
    gamma: NonNegative = 0.5
    "the reward by which the chosen answer is to lead"

    def terms(self, texts: Texts, nats, batch) -> Terms:
        rewards = self.beta * texts.means
        return Terms(-jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1] - self.gamma), rewards, {})
