"""The mean of the weights of several models with one spec, summed in float64 to round only once."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Tree


class Total(NamedTuple):
    """The sum of the weights of `count` models, in float64 on their mesh.

    sums: trained parameters and statistics. fixed: constants, which are not summed.
    """

    sums: Tree
    fixed: Tree
    count: int

    def mean(self) -> Tree:
        """The merged parameters with the mean, in float32, of trained parameters and statistics."""
        # JAX has no float64 unless it is enabled. Only these sums need it.
        with jax.enable_x64(True):
            return params.merge(jax.tree.map(lambda x: _divided(x, self.count), self.sums), self.fixed)

    def add(self, weights: Tree, spec: Tree) -> "Total":
        """A new total with one more model. This total's arrays stay unchanged."""
        with jax.enable_x64(True):
            return Total(jax.tree.map(_added, self.sums, _summed(weights, spec)), self.fixed, self.count + 1)


def total_of(weights: Tree, spec: Tree) -> Total:
    """The total of one model; weights: its merged parameters."""
    with jax.enable_x64(True):
        # The first member is made wide here, so every later addition is in float64.
        sums = jax.tree.map(lambda x: x.astype(jnp.float64) if _is_float(x) else x, _summed(weights, spec))
    return Total(sums, params.of_kind(weights, spec, "constant"), 1)


def mean(members: Iterable[Tree], spec: Tree) -> Tree:
    """The mean of the merged parameters of several models.

    Only the sum and one member are in memory at a time.
    """
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
    """The sum of floats.

    Integers, such as a count, have no mean and stay those of the first member.
    """
    return a + b.astype(jnp.float64) if _is_float(a) else a


def _divided(x: jax.Array, count: int) -> jax.Array:
    return (x / count).astype(jnp.float32) if _is_float(x) else x
