"""Direct preference optimisation (DPO), in five forms of its loss."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import divisor
from bigmodel_jax.core.ranges import Positive, ShareBelowOne
from bigmodel_jax.objectives.pairs import Pairs, Terms, Texts
from bigmodel_jax.objectives.referenced import REFERENCE, Referenced

Form = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"]


def sigmoid(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """-log sigmoid(beta margin) (arXiv:2305.18290, equation 7).

    `smoothing` is the probability that a label is wrong (Mitchell 2023, "A note on DPO with noisy
    preferences", equation 3).
    """
    right = -jax.nn.log_sigmoid(beta * margin) * (1.0 - smoothing)
    return right - jax.nn.log_sigmoid(-beta * margin) * smoothing


def hinge(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """SLiC's hinge loss (arXiv:2305.10425) of beta margin."""
    return jax.nn.relu(1.0 - beta * margin)


def ipo(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """The squared error (margin - 1 / (2 beta))^2 (arXiv:2310.12036, equation 17)."""
    return jnp.square(margin - 1.0 / (2.0 * beta))


def robust(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """The loss that is unbiased where labels are wrong with probability `smoothing`.

    Source: arXiv:2403.00409, equation 12.
    """
    right, wrong = -jax.nn.log_sigmoid(beta * margin), -jax.nn.log_sigmoid(-beta * margin)
    return ((1.0 - smoothing) * right - smoothing * wrong) / (1.0 - 2.0 * smoothing)


# Functions of the margin (B,): the chosen answer's log-ratio to the reference minus the rejected
# answer's.
FORMS: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "sigmoid_norm": sigmoid,
}
PER_TOKEN = ("ipo", "sigmoid_norm")  # these take log-ratios per token, as in TRL
SMOOTHED = ("sigmoid", "robust", "sigmoid_norm")


@dataclasses.dataclass(frozen=True)
class DPO(Referenced, Pairs):
    """DPO (arXiv:2305.18290): raises the chosen answer's log-ratio above the rejected answer's.

    A log-ratio is log p(answer) - log p_reference(answer), summed over the answer's tokens. A
    reward is beta times the log-ratio. The five forms are those of TRL (1.16, DPOTrainer); ipo and
    sigmoid_norm use log-ratios per token. Batch: the arrays of `Pairs` and `Referenced`.
    """

    form: Form = "sigmoid"
    "the variant of the loss, a name in FORMS"
    beta: Positive = 0.1
    "strength of the pull towards the reference; for ipo its tau"
    label_smoothing: ShareBelowOne = 0.0
    "probability of a wrong label: smoothing in sigmoid and sigmoid_norm, bias correction in robust"

    def __post_init__(self):
        if self.label_smoothing and self.form not in SMOOTHED:
            raise ValueError(
                f"objective.label_smoothing = {self.label_smoothing}: objective.form = {self.form!r} has none; "
                f"allowed with {', '.join(map(repr, SMOOTHED))}"
            )
        if self.form == "robust" and self.label_smoothing >= 0.5:
            raise ValueError(
                f"objective.label_smoothing = {self.label_smoothing}: objective.form = 'robust' needs less than 0.5"
            )

    def terms(self, texts: Texts, nats, batch) -> Terms:
        ratios = texts.log_probs - batch[REFERENCE].astype(jnp.float32)
        compared = ratios / divisor(texts.lengths) if self.form in PER_TOKEN else ratios
        losses = FORMS[self.form](compared[:, 0] - compared[:, 1], self.beta, self.label_smoothing)
        return Terms(losses, self.beta * ratios, {})
