"""A loss cut where its model runs its stack of layers: what comes before, the layers, and what comes after.

The three are the model's own code. The loss is traced with the stack's input taken (`enter`), and with its output given
(`leave`); what is computed in either and not used, the compiler drops.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from bigmodel_jax.nn import pipeline

Leaves = list  # the leaves of a tree that is known where they are made and used


@dataclasses.dataclass(frozen=True)
class Split:
    """The parts of a loss over microbatches of one shape.

    enter(compute, rows, rng) -> (x, shared, fixed): what layers hand on, and what all take, with a gradient and without.
    weights(compute) -> (stacked, xs, closed): what layers take layer by layer, (L, ...), and what they close over.
    layers(stacked + xs, closed, x, shared, fixed) -> (x, ys), for the layers of one group. leave(compute, rows, rng, x, ys)
    -> (total, the loss's further results). outside: which leaves of `compute` the first and the last use.
    """

    enter: Callable[..., tuple[Leaves, Leaves, Leaves]]
    weights: Callable[..., tuple[Leaves, Leaves, Leaves]]
    layers: Callable[..., tuple[Leaves, Leaves]]
    leave: Callable[..., tuple[jax.Array, Any]]
    outside: list[bool]


class _Reached(Exception):
    """Carries the stack's input out of the model."""

    def __init__(self, *call):
        self.call = call


def _stop(*call):
    raise _Reached(*call)


def split(loss: Callable, compute: Any, frozen: Any, rows: Any, rng: jax.Array, groups: int) -> Split:
    """`loss(compute, frozen, rows, rng)` cut at its stack, whose layers come in `groups` of equal size."""

    def reach(compute, rows, rng):
        with pipeline.taken_by(_stop):
            try:
                loss(compute, frozen, rows, rng)
            except _Reached as reached:
                return reached.call
        raise ValueError("parallel.pipeline_schedule = '1f1b': the model runs no stack of layers")

    _, _, x, _, shared = reach(compute, rows, rng)
    x_tree, shared_tree = jax.tree.structure(x), jax.tree.structure(shared)
    leaves = jax.tree.leaves(shared)
    _, pull = jax.vjp(lambda compute: jax.tree.leaves(reach(compute, rows, rng)[4]), compute)
    once, places = pipeline.shared_once(leaves)
    moved, fixed = [i for i in once if pull.out_nzs[i]], [i for i in once if not pull.out_nzs[i]]
    places = [(moved + fixed).index(once[k]) for k in places]

    def enter(compute, rows, rng):
        _, _, x, _, shared = reach(compute, rows, rng)
        shared = jax.tree.leaves(shared)
        return jax.tree.leaves(x), [shared[i] for i in moved], [shared[i] for i in fixed]

    def trace(compute):
        """The layers of one group, and what they take layer by layer."""
        layers, stacked, x, xs, shared = reach(compute, rows, rng)
        group = jax.tree.map(lambda w: w[: w.shape[0] // groups], (stacked, xs))

        def of_group(layered, x, shared):
            shared = jax.tree.unflatten(shared_tree, [shared[k] for k in places])
            return layers(layered[0], x, layered[1], shared=shared)

        shared = jax.tree.leaves(shared)
        traced = jax.make_jaxpr(of_group, return_shape=True)(group, x, [shared[i] for i in moved + fixed])
        return *traced, jax.tree.leaves(stacked), jax.tree.leaves(xs)

    jaxpr, (_, ys), *_ = trace(compute)
    ys_tree = jax.tree.structure(ys)

    def weights(compute):
        jaxpr, _, stacked, xs = trace(compute)
        return stacked, xs, [c for c in jaxpr.consts if isinstance(c, jax.core.Tracer)]

    def layers(layered, closed, x, shared, fixed):
        closed = iter(closed)
        consts = [next(closed) if isinstance(c, jax.core.Tracer) else c for c in jaxpr.consts]
        out = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr.jaxpr, consts))(*layered, *x, *shared, *fixed)
        return out[: len(x)], out[len(x) :]

    def leave(compute, rows, rng, x, ys):
        given = [(jax.tree.unflatten(x_tree, x), jax.tree.unflatten(ys_tree, ys))]

        def give(*_):
            if not given:
                raise ValueError("parallel.pipeline_schedule = '1f1b' is for models of one stack of layers")
            return given.pop()

        with pipeline.taken_by(give):
            return loss(compute, frozen, rows, rng)

    x, *_ = enter(compute, rows, rng)
    ys = [jnp.zeros((groups * y.shape[0], *y.shape[1:]), y.dtype) for y in jax.tree.leaves(ys)]
    used = _used(enter, compute, rows, rng), _used(leave, compute, rows, rng, x, ys)
    return Split(enter, weights, layers, leave, [a or b for a, b in zip(*used, strict=True)])


def _used(fn: Callable, tree: Any, *args) -> list[bool]:
    """Which leaves of `tree` the function `fn(tree, *args)` reads."""
    jaxpr = jax.make_jaxpr(fn)(tree, *args).jaxpr
    read = {id(v) for e in jaxpr.eqns for v in e.invars} | {id(v) for v in jaxpr.outvars}
    return [id(v) in read for v in jaxpr.invars[: len(jax.tree.leaves(tree))]]


def floats(leaves: Leaves) -> Leaves:
    """Those that have gradients."""
    return [a for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact)]


def put_floats(leaves: Leaves, new: Leaves) -> Leaves:
    """All of them, with new values of those that have gradients."""
    values = iter(new)
    return [next(values) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in leaves]
