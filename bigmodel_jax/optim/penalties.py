"""L1 and L2 penalties on weights, and factors on updates by layer and by step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param


def penalised(
    tx: optax.GradientTransformation, l1: float, l2: float, mask: params.Tree
) -> optax.GradientTransformation:
    """`tx` applied to the gradient of loss + l1 |w| + l2 w^2 / 2, where `mask` is True."""
    if not (l1 or l2):
        return tx
    tx = optax.with_extra_args_support(tx)

    def one(held: bool, g: Any, w: Any) -> Any:
        return g + l2 * w + l1 * jnp.sign(w) if held and not isinstance(g, optax.MaskedNode) else g

    def update(grads, state, weights=None, **extra):
        return tx.update(jax.tree.map(one, mask, grads, weights), state, weights, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def by_layer(
    tx: optax.GradientTransformation, spec: params.Tree, decay: float, unfreeze_steps: float
) -> optax.GradientTransformation:
    """`tx` with updates times decay^n for the n-th layer below the last, and 0 while it is frozen.

    The last layer trains from the start, and the first layer after `unfreeze_steps`. The other
    layers follow at equal distances (Howard & Ruder, arXiv:1801.06146, section 3.3). Parameters
    outside the stack count as the first layer for unfreezing. Moments of all layers are kept from
    the start.
    """
    if decay == 1.0 and not unfreeze_steps:
        return tx

    def factor(p: Param, count: jax.Array) -> jax.Array:
        at = p.axes.index("layers") if "layers" in p.axes else None
        layers = 1 if at is None else p.shape[at]
        below = jnp.arange(layers - 1, -1, -1, dtype=jnp.float32)
        share = below / (layers - 1) if layers > 1 else jnp.ones_like(below)
        found = (1.0 if at is None else decay**below) * (count >= unfreeze_steps * share)
        return jnp.reshape(found, [-1 if i == at else 1 for i in range(len(p.shape))])

    def update(updates, state, weights=None):
        def one(p, u):
            return u if isinstance(u, optax.MaskedNode) else u * factor(p, state.count).astype(u.dtype)

        new = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return params.map_spec(one, spec, updates), new

    return optax.chain(
        tx, optax.GradientTransformation(lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)
    )
