"""Activation patching: a forward pass in which residuals of another pass replace some of its own.

Source: Meng et al., arXiv:2202.05262, section 2.1 (causal tracing). Shapes: L layers of the stack,
B batch, T tokens, D embed, N pairs of layer and token.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    *,
    say: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """(L, T): `read` of the model's output for `batch`, a scalar, with one residual patched.

    Entry (l, t) uses the residual of `other` after layer l at token t. Both batches have B = 1.
    """
    residuals = jax.jit(functools.partial(stack_residuals, model))
    own_LBTD, others_LBTD = residuals(params, batch), residuals(params, other)
    L, _, T, _ = others_LBTD.shape

    def one(params: Tree, batch: dict, others_LBTD: jax.Array, n: jax.Array) -> jax.Array:
        where = (jnp.arange(L * T) == n).reshape(L, 1, T)
        return read(patched(model, params, batch, others_LBTD, where))

    some = jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))
    # An equal residual changes nothing, such as those before the first token in which texts differ.
    differ = np.flatnonzero(np.asarray(jnp.any(own_LBTD != others_LBTD, axis=(1, 3))))
    # No residual has the number L * T, so the last pass is that of `batch` as it is.
    numbers, values = np.append(differ, L * T), []
    # Batches of passes, since all at once would not fit in memory.
    for first in range(0, len(numbers), AT_ONCE):
        say(f"Activation patching, residual {first + 1:,} of {len(differ):,}")
        part = numbers[first : first + AT_ONCE]
        # Every batch has the same size, so that one program serves all.
        values.extend(np.asarray(some(params, batch, others_LBTD, np.resize(part, AT_ONCE)))[: len(part)])
    found = np.full(L * T, values[-1])
    found[differ] = values[:-1]
    return found.reshape(L, T)
