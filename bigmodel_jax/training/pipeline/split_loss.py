"""A model's loss in three parts: before its layers, the layers, and after them.

All parts are functions on lists of leaves, and run the model's and the objective's own code.
`leave` runs `enter` again for the values that it needs. The compiler drops the unused rest.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import Entry, Parts
from bigmodel_jax.nn import pipeline, stack
from bigmodel_jax.objectives import Objective

Leaves = list  # the leaves of a tree whose structure is known to producer and user


@dataclasses.dataclass(frozen=True)
class PartedLoss:
    """The loss of one call of a model, in parts.

    whole: maps the trained parameters to all parameters of the model.
    summed: maps a `Loss` to (total, auxiliary results).
    """

    parts: Parts
    objective: Objective
    whole: Callable[[Tree], Tree]
    summed: Callable[..., tuple[jax.Array, Any]]

    def read(self, compute: Tree) -> Tree:
        """The parameters as the parts read them. Adapters have no dropout in a pipeline."""
        return self.parts.read(self.whole(compute), None)

    def enter(self, compute: Tree, rows: Any, rng: jax.Array) -> tuple[Tree, dict, Entry]:
        """Returns (parameters outside the stack, the model's inputs, the input of the stack)."""
        rows, rng = self.objective.inputs(rows, rng)
        outside = self.parts.outside(self.read(compute))
        return outside, rows, self.parts.enter(outside, rows, rng=rng, train=True, cache=None)

    def leave(self, compute: Tree, rows: Any, rng: jax.Array, x: Any, ys: Any) -> tuple[jax.Array, Any]:
        """The loss from the stack's outputs x and ys."""
        outside, rows, entry = self.enter(compute, rows, rng)
        out = self.parts.leave(outside, entry, x, ys, rows, train=True)
        return self.summed(self.objective.score(out, rows, params=outside, train=True))


@dataclasses.dataclass(frozen=True)
class Split:
    """The parts of a loss, for microbatches of one shape.

    enter: (compute, rows, rng) -> (x, shared, fixed): the input of the layers, and the arrays that
        all layers take, with a gradient and without.
    weights: compute -> (stacked, xs, closed): arrays (L, ...) of which layer i takes row i, and
        arrays that every layer takes whole.
    layers: (stacked + xs, closed, x, shared, fixed) -> (x, ys), for one group of layers.
    leave: (compute, rows, rng, x, ys) -> (total, auxiliary results).
    outside: compute -> the parameters that `enter` and `leave` use.
    """

    enter: Callable[..., tuple[Leaves, Leaves, Leaves]]
    weights: Callable[..., tuple[Leaves, Leaves, Leaves]]
    layers: Callable[..., tuple[Leaves, Leaves]]
    leave: Callable[..., tuple[jax.Array, Any]]
    outside: Callable[[Tree], Tree]


def split(loss: PartedLoss, compute: Tree, rows: Any, rng: jax.Array) -> Split:
    """Splits `loss` into functions on leaves.

    `rows` and `rng` belong to one microbatch. They give the shapes, and the arrays that every layer
    takes whole.
    """

    def entered(compute, rows, rng) -> Entry:
        return loss.enter(compute, rows, rng)[2]

    def of_layers(compute, rows=rows):
        entry = entered(compute, rows, rng)
        return loss.read(compute)[loss.parts.stack], entry.xs, entry.whole

    if _reads(lambda rows: of_layers(compute, rows)[1:], rows):
        raise ValueError(
            "parallel.pipeline_schedule = '1f1b': the model's Entry.xs or Entry.whole depends on the rows of the batch; put "
            "such values into Entry.shared"
        )
    first = entered(compute, rows, rng)
    trees = jax.tree.structure(of_layers(compute)[:2]), jax.tree.structure(first.whole), jax.tree.structure(first.x)
    layered_tree, whole_tree, x_tree = trees
    shared_leaves, shared_tree = jax.tree.flatten(first.shared)
    once, places = pipeline.shared_once(shared_leaves)
    _, pull = jax.vjp(lambda compute: jax.tree.leaves(entered(compute, rows, rng).shared), compute)
    # `out_nzs` tells which outputs have a tangent, that is, depend on `compute`.
    moved, fixed = [i for i in once if pull.out_nzs[i]], [i for i in once if not pull.out_nzs[i]]
    places = [(moved + fixed).index(once[k]) for k in places]

    def enter(compute, rows, rng):
        entry = entered(compute, rows, rng)
        shared = jax.tree.leaves(entry.shared)
        return jax.tree.leaves(entry.x), [shared[i] for i in moved], [shared[i] for i in fixed]

    still = _without_gradient(of_layers, compute)

    def weights(compute):
        # Floats without a gradient are passed as integers (`_without_gradient`), and `run` converts
        # them back.
        kinds = iter(still)
        bits = jax.tree.map(lambda a: _bits(a) if next(kinds) else a, of_layers(compute))
        return tuple(map(jax.tree.leaves, bits))

    def run(layered, closed, x, shared, fixed):
        given = zip([*layered, *closed], still, strict=True)
        leaves = [jax.lax.bitcast_convert_type(a, dtype) if dtype else a for a, dtype in given]
        closed = leaves[len(layered) :]
        stacked, xs = jax.tree.unflatten(layered_tree, leaves[: len(layered)])
        travelling = [*shared, *fixed]
        shared = jax.tree.unflatten(shared_tree, [travelling[k] for k in places])
        layers = loss.parts.layers(stack.sequential, jax.tree.unflatten(whole_tree, closed), train=True)
        return layers(stacked, jax.tree.unflatten(x_tree, x), xs, shared=shared)

    def layers(*leaves):
        x, ys = run(*leaves)
        return jax.tree.leaves(x), jax.tree.leaves(ys)

    stacked, xs, closed = weights(compute)
    ys_tree = jax.tree.structure(jax.eval_shape(run, stacked + xs, closed, *enter(compute, rows, rng))[1])

    def leave(compute, rows, rng, x, ys):
        return loss.leave(compute, rows, rng, jax.tree.unflatten(x_tree, x), jax.tree.unflatten(ys_tree, ys))

    return Split(enter, weights, layers, leave, loss.parts.outside)


def _reads(fn: Callable, tree: Any) -> bool:
    """Whether a result of `fn(tree)` depends on the values in the tree."""
    jaxpr = jax.make_jaxpr(fn)(tree).jaxpr
    # The loop follows the data flow from the inputs through all equations.
    reached = set(map(id, jaxpr.invars))
    for equation in jaxpr.eqns:
        if any(id(v) in reached for v in equation.invars):
            reached |= set(map(id, equation.outvars))
    return any(id(v) in reached for v in jaxpr.outvars)


def _without_gradient(taken: Callable, compute: Tree) -> list:
    """For each leaf that layers take: its dtype if it is a float without gradient, else None.

    These are constants and statistics. They go to the layers as integers of the same bits, because
    autodiff ignores integers.
    """
    leaves = jax.tree.leaves(taken(compute))
    _, pull = jax.vjp(lambda compute: floats(jax.tree.leaves(taken(compute))), compute)
    moved = iter(pull.out_nzs)
    return [a.dtype if jnp.issubdtype(a.dtype, jnp.inexact) and not next(moved) else None for a in leaves]


def _bits(a: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(a, {2: jnp.uint16, 4: jnp.uint32}[a.dtype.itemsize])


def floats(leaves: Leaves) -> Leaves:
    """The leaves that have gradients: those of floating dtype."""
    return [a for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact)]


def put_floats(leaves: Leaves, new: Leaves) -> Leaves:
    """All leaves, with new values for those of floating dtype."""
    values = iter(new)
    return [next(values) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in leaves]
