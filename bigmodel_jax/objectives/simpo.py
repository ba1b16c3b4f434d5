"""SimPO: preference training by log-probabilities per token, without a reference model."""

import dataclasses

import jax

from bigmodel_jax.core.ranges import NonNegative, Positive
from bigmodel_jax.objectives.pairs import Pairs, Terms, Texts


@dataclasses.dataclass(frozen=True)
class SimPO(Pairs):
    """-log sigmoid(beta (mean log p of the chosen - of the rejected answer) - gamma).

    The means are over an answer's tokens. Source: arXiv:2405.14734, equation 6; TRL 1.16,
    CPOTrainer with loss_type "simpo". Batch: as for `Pairs`.
    """

    beta: Positive = 2.0
    "factor on the mean log-probabilities, which makes them rewards"
    gamma: NonNegative = 0.5
    "the target margin between the two rewards"

    def terms(self, texts: Texts, nats, batch) -> Terms:
        # Means instead of sums keep long answers from having lower rewards than short ones.
        rewards = self.beta * texts.means
        return Terms(-jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1] - self.gamma), rewards, {})
