"""Opens a model of one stack of layers, to replace its embeddings and to read its residuals.

Shapes: B batch, T tokens, D embed, L layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import Entry, Model, Parts
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.taps import tapped


class Opened(NamedTuple):
    """A model's parts, its parameters as these parts read them, and one batch's input to the
    stack."""

    parts: Parts
    params: Tree
    batch: dict[str, jax.Array]
    entry: Entry

    @property
    def embeddings(self) -> jax.Array:
        """(B, T, D): the input of the first layer of the stack."""
        return self.entry.x

    def run(self, x_BTD: jax.Array, layers: Callable = stack.run, xs: Any = None) -> tuple[jax.Array, Any]:
        """(output of the last layer, the layers' ys) for these embeddings.

        layers: a function that runs the layers, like `stack.run`. xs: per-layer inputs instead of
        the entry's.
        """
        # `layers` may replace stack.run, as patching does.
        run = self.parts.layers(layers, self.entry.whole, train=False)
        xs = self.entry.xs if xs is None else xs
        return run(self.params[self.parts.stack], x_BTD, xs, shared=self.entry.shared)

    def leave(self, x_BTD: jax.Array, ys: Any) -> jax.Array:
        """The model's output for this residual, through its final norm and head."""
        outside = self.parts.outside(self.params)
        return self.parts.leave(outside, self.entry, x_BTD, ys, self.batch, train=False).value


def opened(model: Model, params: Tree, batch: dict[str, jax.Array]) -> Opened:
    """Opens a model for a batch.

    Raises ValueError for a model that is not given in parts, or whose layers pass on several
    arrays.
    """
    parts = model.parts
    if parts is None:
        raise ValueError("the model has no stack of layers whose taps can be read (models/base.py, Parts)")
    params = parts.read(params, None)
    entry = parts.enter(parts.outside(params), batch, rng=None, train=False, cache=None)
    if not isinstance(entry.x, jax.Array):
        raise ValueError("the model's layers pass on more than one array, so that no single residual can be read")
    return Opened(parts, params, batch, entry)


def residuals(model: Model, params: Tree, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    """((L, B, T, D), ys): the output of each layer, and the ys of the stack's layers.

    Layers that run before the stack are included in L.
    """

    def run():
        # The model is opened inside the tapped function, because layers before the stack run here.
        here = opened(model, params, batch)
        return here.run(here.embeddings)[1]

    ys, found = tapped(run, "residual")()
    return found["residual"], ys
