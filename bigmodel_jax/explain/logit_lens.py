"""The logit lens: the output that the model would have if each layer were its last layer.

Source: nostalgebraist, "interpreting GPT: the logit lens", 2020. Shapes: L layers, B batch, T
tokens, D embed.
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
    """read(model output) for the embeddings and for the output of each layer, stacked (1 + L, ...).

    The model's own final norm and head are applied, so the last entry is the model's output. read:
    keeps a part of the output, because logits over a vocabulary for all layers are large.
    """
    here = opened(model, params, batch)
    found, ys = residuals(model, params, batch)
    layers = jnp.concatenate([here.embeddings[None], found])
    # A map instead of vmap keeps the logits of only one layer in memory.
    return jax.lax.map(lambda x_BTD: read(here.leave(x_BTD, ys)), layers)
