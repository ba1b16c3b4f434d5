"""Attention maps, and how they add up through the layers (Abnar & Zuidema, arXiv:2005.00928).

Shapes: L layers, B batch, H heads, T tokens.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import Model
from bigmodel_jax.nn.taps import tapped


def maps(model: Model, params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
    """(L, B, H, T, T) float32: what each token takes of each other one. A row's sum is 1, or less in a model with sinks.

    The plain definition computes them, whichever kernel computes the model's attention. ValueError for a model whose
    layers do not attend.
    """
    return tapped(model.apply, "weights")(params, batch)[1]["weights"]


def rollout(maps_LHTT: jax.Array) -> jax.Array:
    """(T, T): of each token after the last layer, the shares of the tokens before the first (section 3, equation 1).

    Heads are averaged; half of each layer's input passes by its attention, as the residual sum lets it.
    """
    mean_LTT = maps_LHTT.mean(axis=1)
    with_residual = (mean_LTT + jnp.eye(mean_LTT.shape[-1])) / 2
    with_residual /= with_residual.sum(axis=-1, keepdims=True)
    rolled, _ = jax.lax.scan(lambda below, layer: (layer @ below, None), jnp.eye(mean_LTT.shape[-1]), with_residual)
    return rolled
