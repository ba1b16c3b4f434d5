"""Running a stack of equal layers whose parameters lie stacked along dimension 0."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.nn import pipeline

Remat = Literal["none", "full", "dots"]

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run(
    block: Callable,
    stacked: Any,
    x: Any,
    xs: Any = None,
    *,
    shared: tuple = (),
    remat: Remat = "none",
    unroll: bool = False,
) -> tuple[Any, Any]:
    """Applies `block(layer_params, x, layer_xs, *shared) -> (x, ys)` layer by layer; returns (x, stacked ys).

    shared: whatever else has the batch as dimension 0 (positions, a memory): the block must not close over it. In a step
    for several stages the layers run as a pipeline (pipeline.py), and ys must then be sums over rows.
    remat: recompute activations in the backward pass: all of them, or all but the matrix products.
    unroll: one copy of the layer in the program per layer, instead of one in a loop.
    """
    options = {"remat": remat, "unroll": unroll}
    if not pipeline.active():
        return sequential(block, stacked, x, xs, shared=shared, **options)
    return pipeline.run(functools.partial(sequential, block, **options), stacked, x, xs, shared)


def sequential(
    block: Callable,
    stacked: Any,
    x: Any,
    xs: Any = None,
    *,
    shared: tuple = (),
    remat: Remat = "none",
    unroll: bool = False,
) -> tuple[Any, Any]:
    """`run`, and never a pipeline: for layers that every stage holds, and for ys that are no sums."""
    body = block if remat == "none" else jax.checkpoint(block, policy=POLICIES[remat], prevent_cse=unroll)

    def step(carry, layer):
        return body(layer[0], carry, layer[1], *shared)

    if not unroll:
        return jax.lax.scan(step, x, (stacked, xs))
    # Not scan's own `unroll`: split once, the layers' gradients come back by one concatenation.
    leaves, treedef = jax.tree.flatten((stacked, xs))
    layers = [jax.tree.unflatten(treedef, layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]
    ys = []
    for layer in layers:
        x, y = step(x, layer)
        ys.append(y)
    return x, jax.tree.map(lambda *y: jnp.stack(y), *ys)
