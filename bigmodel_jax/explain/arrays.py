"""Explains a model's output for a picture or a row of numbers: which values matter, and what it
attends to.

Shapes: H height, W width, C channels, F columns, L layers, T tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from bigmodel_jax.core.params import Tree
from bigmodel_jax.explain import attention_maps, grad_cam, integrated_gradients, saliency, smooth_grad, texts
from bigmodel_jax.explain.integrated_gradients import Attributions
from bigmodel_jax.explain.subject import Answer, Subject, answered


@dataclasses.dataclass(frozen=True)
class ArrayExplanation:
    """Everything computed for a picture (H, W, C) or a row (F,).

    - values: the input as the model gets it
    - answer: the model's output, and the entry of it that is explained
    - integrated: integrated gradients, in the shape of values
    - gradient, smooth: the gradient and its SmoothGrad version, in the shape of values
    - cam: (h, w), the Grad-CAM map; None without convolutions
    - maps: (L, heads, T, T), attention maps; None without attention
    - rollout: (rows, columns), attention rollout over patches; None if there is no class token
    - first: the number of tokens before the patches
    - lens: the logit lens; None unless the model is one stack of layers and predicts classes
    """

    values: np.ndarray
    answer: Answer
    integrated: Attributions
    gradient: np.ndarray
    smooth: np.ndarray
    cam: np.ndarray | None
    maps: np.ndarray | None
    rollout: np.ndarray | None
    first: int
    lens: texts.Lens | None


def explain(
    subject: Subject,
    key: str,
    baseline: np.ndarray,
    *,
    target: int | None = None,
    classes: bool = True,
    patches: tuple[int, int] | None = None,
) -> ArrayExplanation:
    """Explains the subject's output for its batch.

    - key: the array of the batch to explain
    - baseline: the values that stand for an empty input
    - target: the class or number to explain; None = the likeliest
    - classes: whether the model's outputs are classes, and not numbers
    - patches: (rows, columns) if the model reads a picture as patches
    """
    answer = answered(subject, subject.of_batch(subject.batch), target, classes=classes)

    def score(params: Tree, batch: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return subject.score(subject.computed(params, batch | {key: x}), answer.target)

    # A Partial passes the weights as arguments instead of compiling them into the program.
    f = Partial(score, subject.params, subject.batch)
    x = jnp.asarray(subject.batch[key], jnp.float32)
    in_layers = _in_layers(subject, answer, classes, patches)
    # Grad-CAM needs a height and a width, which only a batch of pictures (B, H, W, C) has.
    cam = jax.jit(grad_cam.grad_cam)(f, x) if x.ndim == 4 else None
    subject.say("Integrated gradients")
    integrated = integrated_gradients.complete(f, x, jnp.asarray(baseline, jnp.float32)[None], say=subject.say)
    subject.say("Saliency and SmoothGrad")
    return ArrayExplanation(
        values=np.asarray(x[0]),
        answer=answer,
        integrated=integrated,
        gradient=np.asarray(jax.jit(saliency.gradient)(f, x)[0]),
        # A fixed key draws the same noise for each page of the same input.
        smooth=np.asarray(jax.jit(smooth_grad.smooth_grad)(f, x, jax.random.key(0))[0]),
        cam=None if cam is None else np.asarray(cam),
        **in_layers,
    )


def _in_layers(subject: Subject, answer: Answer, classes: bool, patches: tuple[int, int] | None) -> dict[str, Any]:
    """The explanations that only a model of one stack of layers has."""
    if subject.model.parts is None:
        return {"maps": None, "rollout": None, "first": 0, "lens": None}
    maps = texts.maps(subject)
    # Tokens before the patches, such as the class token.
    first = maps.shape[-1] - patches[0] * patches[1] if maps is not None and patches else 0
    rollout = None
    if first > 0:  # the class is read from a token of its own
        rollout = np.asarray(attention_maps.rollout(jnp.asarray(maps)))[0, first:].reshape(patches)
    lens = texts.lens(subject, answer) if classes else None
    return {"maps": maps, "rollout": rollout, "first": first, "lens": lens}
