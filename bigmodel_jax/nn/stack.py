"""Running a stack of equal layers whose parameters lie stacked along dimension 0."""

from collections.abc import Callable
from typing import Any, Literal

import jax

Remat = Literal["none", "full", "dots"]

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run(
    block: Callable, stacked: Any, x: Any, xs: Any = None, *, remat: Remat = "none", unroll: bool = False
) -> tuple[Any, Any]:
    """Applies `block(layer_params, x, layer_xs) -> (x, ys)` layer by layer; returns (x, stacked ys).

    remat: recompute activations in the backward pass: all of them, or all but the matrix products.
    unroll: one copy of the layer in the program per layer, instead of one in a loop.
    """
    body = block if remat == "none" else jax.checkpoint(block, policy=POLICIES[remat], prevent_cse=unroll)

    def step(carry, layer):
        return body(layer[0], carry, layer[1])

    return jax.lax.scan(step, x, (stacked, xs), unroll=unroll or 1)
