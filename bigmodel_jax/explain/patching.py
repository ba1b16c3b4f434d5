"""Activation patching: a forward pass in which residuals of another pass replace some of its own.

Source: Meng et al., arXiv:2202.05262, section 2.1 (causal tracing). Shapes: L layers of the stack,
B batch, T tokens, D embed, N pairs of layer and token.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Tree
from bigmodel_jax.explain.opened import opened
from bigmodel_jax.models.base import Model
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.taps import tapped

AT_ONCE = 8  # patched forward passes in one batch


def patched(
    model: Model, params: Tree, batch: dict[str, jax.Array], others_LBTD: jax.Array, where_LBT: jax.Array
) -> jax.Array:
    """The model's output if `others` replace the layer outputs wherever `where` (bool) is true."""
    here = opened(model, params, batch)
    own = here.entry.xs

    def layers(block: Callable, stacked: Any, x: Any, xs: Any, **how: Any) -> tuple[Any, Any]:
        def one(layer: Any, x: jax.Array, xs: Any, *shared: Any) -> tuple[jax.Array, Any]:
            xs, other, where = xs
            x, ys = block(layer, x, xs, *shared)
            return jnp.where(where[..., None], other, x), ys

        return stack.run(one, stacked, x, xs, **how)

    # The scan over layers hands each layer its own inputs, and the residual to put in its place.
    return here.leave(*here.run(here.embeddings, layers, (own, others_LBTD, where_LBT)))


def stack_residuals(model: Model, params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
    """(L, B, T, D): the output of each layer of the stack."""
    here = opened(model, params, batch)
    return tapped(lambda: here.run(here.embeddings), "residual")()[1]["residual"]


def trace(
    model: Model,
    params: Tree,
    batch: dict[str, jax.Array],
    other: dict[str, jax.Array],
    read: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """(L, T): `read` of the model's output for `batch`, a scalar, with one residual patched.

    Entry (l, t) uses the residual of `other` after layer l at token t. Both batches have B = 1.
    """
    others_LBTD = stack_residuals(model, params, other)
    L, _, T, _ = others_LBTD.shape

    def one(n: jax.Array) -> jax.Array:
        where = jnp.zeros((L * T,), bool).at[n].set(True).reshape(L, 1, T)
        return read(patched(model, params, batch, others_LBTD, where))

    # Batches of runs, since all L * T at once would not fit in memory.
    return jax.lax.map(one, jnp.arange(L * T), batch_size=AT_ONCE).reshape(L, T)
