"""Explains a model's output for a text: tokens, layers, attention and patching.

Shapes: L layers, H heads, T tokens, D embed, C classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from bigmodel_jax.core.params import Tree
from bigmodel_jax.explain import attention_maps, integrated_gradients, logit_lens, patching, saliency
from bigmodel_jax.explain.integrated_gradients import Attributions
from bigmodel_jax.explain.opened import opened
from bigmodel_jax.explain.subject import TOP, Answer, Subject, answered


@dataclasses.dataclass(frozen=True)
class Lens:
    """The logit lens: predictions from the embeddings and from each layer.

    - names, shares: (1 + L, columns), entries and their probabilities; for a decoder the likeliest
      token after each token of the text, for a classifier its likeliest classes
    - target: (1 + L,), the probability of the answer that is explained
    - columns: the classes; None for a decoder, whose columns are the text's tokens
    """

    names: list[list[str]]
    shares: np.ndarray
    target: np.ndarray
    columns: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Patch:
    """Activation patching between two texts.

    - pieces, answer: tokens and answer of the second text
    - metric: log p(answer of the text) - log p(answer of the second text), in words
    - with_text, without: the metric for the text and for the second text
    - restored: (L, T), the metric of the second text's pass with one residual of the text, scaled
      so that 0 is `without` and 1 is `with_text`
    - offset: number of the model's layers before the first one that is patched
    """

    pieces: tuple[str, ...]
    answer: Answer
    metric: str
    with_text: float
    without: float
    restored: np.ndarray
    offset: int


@dataclasses.dataclass(frozen=True)
class TextExplanation:
    """Everything computed for a text.

    - pieces: the tokens as text
    - answer: the model's output, and the entry of it that is explained
    - next_token: whether the model predicts the next token, and not a class
    - baseline: the name of the token that stands for an empty text
    - integrated: integrated gradients (1, T, D); by_token: their sums over D, (T,)
    - gradient: (T,), the norm of the gradient with respect to each embedding
    - lens, maps, patch: logit lens, attention maps (L, H, T, T), activation patching
    """

    pieces: tuple[str, ...]
    answer: Answer
    next_token: bool
    baseline: str
    integrated: Attributions
    by_token: np.ndarray
    gradient: np.ndarray
    lens: Lens
    maps: np.ndarray | None
    patch: Patch | None


def explain(
    subject: Subject,
    pieces: tuple[str, ...],
    baseline: jax.Array,
    *,
    baseline_name: str = "",
    target: int | None = None,
    against: tuple[jax.Array, tuple[str, ...]] | None = None,
) -> TextExplanation:
    """Explains the subject's answer.

    - pieces: the tokens as text
    - baseline: (1, T), the tokens that stand for an empty text
    - target: the entry to explain; None = the likeliest
    - against: tokens (1, T) of a second text of equal length, and their pieces
    """
    answer = answered(subject, subject.of_batch(subject.batch), target)
    subject.say("Integrated gradients")
    integrated, gradient = attributed(subject, baseline, answer.target)
    by_token = np.asarray(integrated.values[0].sum(axis=-1))
    subject.say("Logit lens and attention")
    return TextExplanation(
        pieces=pieces,
        answer=answer,
        next_token=subject.next_token,
        baseline=baseline_name,
        integrated=integrated,
        by_token=by_token,
        gradient=np.asarray(jnp.linalg.norm(gradient[0], axis=-1)),
        lens=lens(subject, answer),
        maps=maps(subject),
        patch=against and patch(subject, answer, *against),
    )


def attributed(subject: Subject, baseline: jax.Array, target: int) -> tuple[Attributions, jax.Array]:
    """Integrated and plain gradients of the score with respect to the embeddings, both (1, T,
    D)."""

    def score(params: Tree, batch: dict, x_BTD: jax.Array) -> jax.Array:
        here = opened(subject.model, params, batch)
        return subject.score(subject.answer(here.leave(*here.run(x_BTD))), target)

    @jax.jit
    def embeddings(params: Tree, batch: dict) -> jax.Array:
        return opened(subject.model, params, batch).embeddings

    batches = (subject.batch, subject.batch | {"tokens": baseline})
    x_BTD, empty_BTD = (embeddings(subject.params, batch) for batch in batches)
    f = Partial(score, subject.params, subject.batch)
    return integrated_gradients.complete(f, x_BTD, empty_BTD, say=subject.say), jax.jit(saliency.gradient)(f, x_BTD)


def lens(subject: Subject, answer: Answer) -> Lens:
    """The logit lens of the subject."""

    def read(value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shares = jax.nn.softmax(value[0].astype(jnp.float32), axis=-1)
        if not subject.next_token:
            return jnp.arange(len(shares)), shares, shares[answer.target]
        return jnp.argmax(shares, axis=-1), shares.max(axis=-1), shares[-1, answer.target]

    run = jax.jit(lambda params, batch: logit_lens.logit_lens(subject.model, params, batch, read))
    found, shares, target = (np.asarray(x) for x in run(subject.params, subject.batch))
    columns = None
    if not subject.next_token:  # the likeliest classes of the last layer
        best = np.argsort(-shares[-1], kind="stable")[:TOP]
        found, shares, columns = found[:, best], shares[:, best], tuple(subject.name(int(i)) for i in best)
    names = [[subject.name(int(i)) for i in row] for row in found]
    return Lens(names, shares, target, columns)


def maps(subject: Subject) -> np.ndarray | None:
    """Attention maps (L, H, T, T); None if the model's layers do not use nn/attention."""
    run = jax.jit(lambda params, batch: attention_maps.maps(subject.model, params, batch))
    try:
        return np.asarray(run(subject.params, subject.batch))[:, 0]
    except ValueError as error:
        # The model has no attention to show. Other errors are real.
        if "no layer has 'weights'" not in str(error):
            raise
        return None


def patch(subject: Subject, answer: Answer, tokens: jax.Array, pieces: tuple[str, ...]) -> Patch:
    """Patches residuals of the subject's text into a second text's forward pass."""
    batch = subject.batch | {"tokens": tokens}
    of_text, of_other = (subject.of_batch(b) for b in (subject.batch, batch))
    other = answered(subject, of_other, None)

    def metric(logits: jax.Array) -> jax.Array:
        # With equal answers the difference would be 0, so the score of the answer alone is taken.
        score = subject.score(logits, answer.target)
        return score if other.target == answer.target else score - subject.score(logits, other.target)

    def read(value: jax.Array) -> jax.Array:
        return metric(subject.answer(value))

    found = patching.trace(subject.model, subject.params, batch, subject.batch, read, say=subject.say)
    with_text, without = float(metric(of_text)), float(metric(of_other))
    # The results are scaled so that 0 is the second text's value, and 1 is the first text's.
    away = with_text - without
    measured = f"log p({answer.name})" if subject.next_token else f"logit of {answer.name}"
    if other.target != answer.target:
        measured += f" - log p({other.name})" if subject.next_token else f" - logit of {other.name}"
    # Only the number of layers is needed, so shapes suffice and nothing is computed.
    layers = jax.eval_shape(lambda: logit_lens.residuals(subject.model, subject.params, batch)[0]).shape[0]
    restored = (found - without) / away if abs(away) > 1e-6 else np.zeros_like(found)
    return Patch(pieces, other, measured, with_text, without, restored, layers - len(found))
