"""The subject of an explanation: a model, one input, and the entry of the output to explain.

Shapes: T tokens, V vocabulary, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import Model

TOP = 5  # number of likeliest entries that an answer lists


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and one input.

    batch: a batch of one row. next_token: whether the model predicts the next token of a text, and
    not a class or number. name: the text of an entry of the output, a token or a class. say: gets
    the method in progress, as text.
    """

    model: Model
    params: Tree
    batch: dict[str, jax.Array]
    next_token: bool
    name: Callable[[int], str]
    say: Callable[[str], None] = lambda _: None

    def answer(self, value: jax.Array) -> jax.Array:
        """(V,) or (C,) of the model's output: logits of the next token, or of the classes."""
        return value[0, -1] if self.next_token else value[0]

    def of_batch(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The jitted answer to a batch; parameters are an argument, so they are not compiled in."""
        return self._jitted(self.params, batch)

    @functools.cached_property
    def _jitted(self) -> Callable:
        # A jit of its own for each call would compile the model for each batch.
        return jax.jit(self.computed)

    def computed(self, params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        return self.answer(self.model.apply(params, batch).value)

    def score(self, logits: jax.Array, target: int) -> jax.Array:
        """The scalar that attributions add up to: a token's log-probability in nats, or a class's
        logit."""
        logits = logits.astype(jnp.float32)
        return jax.nn.log_softmax(logits)[target] if self.next_token else logits[target]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The model's output for one input.

    target: the entry that is explained. top: the likeliest entries, and the target, with
    probabilities; empty for a model of numbers. value: the predicted number of such a model.
    """

    target: int
    name: str
    top: tuple[tuple[str, float], ...]
    value: float = 0.0

    @property
    def probability(self) -> float:
        return dict(self.top).get(self.name, 1.0)


def answered(subject: Subject, logits: jax.Array, target: int | None, *, classes: bool = True) -> Answer:
    """The model's answer; target: the entry to explain, None = the likeliest; classes: whether
    logits are given."""
    logits = np.asarray(logits, np.float64)
    if not classes:
        target = 0 if target is None else target
        return Answer(target, subject.name(target), (), float(logits[target]))
    # Without the largest logit, exp cannot overflow.
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    # The sort is stable, so that equal probabilities keep the order of their numbers.
    best = [int(i) for i in np.argsort(-shares, kind="stable")[:TOP]]
    target = best[0] if target is None else target
    shown = best if target in best else [*best[:-1], target]
    return Answer(target, subject.name(target), tuple((subject.name(i), float(shares[i])) for i in shown))
