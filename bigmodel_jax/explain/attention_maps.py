"""Attention maps, and their product through the layers: rollout (Abnar & Zuidema,
arXiv:2005.00928).

Shapes: L layers, B batch, H heads, T tokens.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import Model
from bigmodel_jax.nn.taps import tapped


def maps(model: Model, params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
    """(L, B, H, T, T) float32: the weight of each token (last axis) in each token (the axis
    before).

    A row sums to 1, or to less in a model with attention sinks. The weights are computed by the
    plain definition, whichever kernel the model uses. Raises ValueError for a model without
    attention.
    """
    return tapped(model.apply, "weights")(params, batch)[1]["weights"]


def rollout(maps_LHTT: jax.Array) -> jax.Array:
    """(T, T): the share of each input token (last axis) in each token after the last layer.

    By section 3, equation 1, heads are averaged, and half of each layer's input bypasses the
    attention, because of the residual connection.
    """
    mean_LTT = maps_LHTT.mean(axis=1)
    # The identity stands for the residual connection.
    with_residual = (mean_LTT + jnp.eye(mean_LTT.shape[-1])) / 2
    # A row of weights sums to less than 1 in a model with attention sinks.
    with_residual /= with_residual.sum(axis=-1, keepdims=True)
    rolled, _ = jax.lax.scan(lambda below, layer: (layer @ below, None), jnp.eye(mean_LTT.shape[-1]), with_residual)
    return rolled
