"""Direct preference optimisation, in five forms of its loss."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core.ranges import Positive, ShareBelowOne
from bigmodel_jax.objectives.pairs import Pairs, Terms, Texts
from bigmodel_jax.objectives.referenced import REFERENCE, Referenced

Form = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"]


def sigmoid(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """-log sigmoid(beta margin) (arXiv:2305.18290, equation 7); with smoothing, the label is wrong so often (Mitchell 2023,
    "A note on DPO with noisy preferences", equation 3)."""
    right = -jax.nn.log_sigmoid(beta * margin) * (1.0 - smoothing)
    return right - jax.nn.log_sigmoid(-beta * margin) * smoothing


def hinge(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """SLiC's loss (arXiv:2305.10425) of beta margin."""
    return jax.nn.relu(1.0 - beta * margin)


def ipo(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """(margin - 1 / (2 beta))^2 (arXiv:2310.12036, equation 17)."""
    return jnp.square(margin - 1.0 / (2.0 * beta))


def robust(margin: jax.Array, beta: float, smoothing: float) -> jax.Array:
    """The unbiased loss where labels are wrong so often (arXiv:2403.00409, equation 12)."""
    right, wrong = -jax.nn.log_sigmoid(beta * margin), -jax.nn.log_sigmoid(-beta * margin)
    return ((1.0 - smoothing) * right - smoothing * wrong) / (1.0 - 2.0 * smoothing)


# Of the margin (B,): the chosen answer's log-ratio to the reference less the rejected one's.
FORMS: dict[str, Callable[[jax.Array, float, float], jax.Array]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "sigmoid_norm": sigmoid,
}
PER_TOKEN = ("ipo", "sigmoid_norm")  # whose log-ratios are means over an answer's tokens, as in TRL
SMOOTHED = ("sigmoid", "robust", "sigmoid_norm")


@dataclasses.dataclass(frozen=True)
class DPO(Referenced, Pairs):
    """The chosen answer is to gain on the rejected one, compared with the reference (arXiv:2305.18290).

    A reward is beta times an answer's log-ratio, log p(answer) - log p_reference(answer), summed over its tokens. The five
    forms are TRL's (1.16, DPOTrainer): ipo and sigmoid_norm take log-ratios per token. Batch: as Pairs', and as Referenced'.
    """

    form: Form = "sigmoid"
    beta: Positive = 0.1
    "how strongly the model is held to the reference; ipo: its tau"
    label_smoothing: ShareBelowOne = 0.0
    "how often the labels are wrong: sigmoid and sigmoid_norm smooth by it, robust corrects for it (below 0.5)"

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
        compared = ratios / jnp.maximum(texts.lengths, 1.0) if self.form in PER_TOKEN else ratios
        losses = FORMS[self.form](compared[:, 0] - compared[:, 1], self.beta, self.label_smoothing)
        return Terms(losses, self.beta * ratios, {})
