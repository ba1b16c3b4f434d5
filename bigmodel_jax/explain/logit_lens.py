"""The logit lens: what the model would answer if each layer were its last (nostalgebraist, "interpreting GPT: the logit
lens", 2020).

Shapes: L layers, B batch, T tokens, D embed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Tree
from bigmodel_jax.explain.opened import opened, residuals
from bigmodel_jax.models.base import Model


def logit_lens(
    model: Model, params: Tree, batch: dict[str, jax.Array], read: Callable[[jax.Array], Any] = lambda logits: logits
) -> Any:
    """read(the model's output) off what enters the stack and off what leaves each layer, stacked (1 + L, ...).

    The final norm and the head are the model's own, so that the last entry is its output. read: the logits over a
    vocabulary of all layers are large, so that a caller may keep a part of them.
    """
    here = opened(model, params, batch)
    found, ys = residuals(model, params, batch)
    layers = jnp.concatenate([here.embeddings[None], found])
    return jax.lax.map(lambda x_BTD: read(here.leave(x_BTD, ys)), layers)
