"""The mean of the weights of several models of one spec, summed in float64 so that it is rounded once."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Tree


class Total(NamedTuple):
    """The weights of `count` models, summed in float64 on their own mesh. Constants are not summed, and stand in `fixed`."""

    sums: Tree
    fixed: Tree
    count: int

    def mean(self) -> Tree:
        """The merged parameters whose trained ones and statistics are the mean, float32."""
        with jax.enable_x64(True):
            return params.merge(jax.tree.map(lambda x: _divided(x, self.count), self.sums), self.fixed)

    def add(self, weights: Tree, spec: Tree) -> "Total":
        """With one more model; the arrays of this total stay as they are."""
        with jax.enable_x64(True):
            return Total(jax.tree.map(_added, self.sums, _summed(weights, spec)), self.fixed, self.count + 1)


def total_of(weights: Tree, spec: Tree) -> Total:
    """The total of one model, of which `weights` are the merged parameters."""
    with jax.enable_x64(True):
        sums = jax.tree.map(lambda x: x.astype(jnp.float64) if _is_float(x) else x, _summed(weights, spec))
    return Total(sums, params.of_kind(weights, spec, "constant"), 1)


def mean(members: Iterable[Tree], spec: Tree) -> Tree:
    """The mean of the merged parameters of models of one spec; one member at a time is in memory beside the sum."""
    members = iter(members)
    total = total_of(next(members), spec)
    for weights in members:
        total = total.add(weights, spec)
    return total.mean()


def _summed(weights: Tree, spec: Tree) -> Tree:
    return params.merge(*(params.of_kind(weights, spec, kind) for kind in ("trained", "statistic")))


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _added(a: jax.Array, b: jax.Array) -> jax.Array:
    """Whole numbers (a count) have no mean: those of the first member stay."""
    return a + b.astype(jnp.float64) if _is_float(a) else a


def _divided(x: jax.Array, count: int) -> jax.Array:
    return (x / count).astype(jnp.float32) if _is_float(x) else x
