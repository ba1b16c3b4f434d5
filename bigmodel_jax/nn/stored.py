"""Functions of constants as they are stored (core/storage.py), whose dense values no backward pass keeps.

A dense weight that is made from a constant depends on nothing that is differentiated. Automatic differentiation
therefore computes it once, in the forward pass, and keeps it for the backward pass; in a scan over layers it keeps the
dense weights of all layers, which is the whole model. Here each pass makes them for itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.storage import Blocked, stored
from bigmodel_jax.nn.lora import Adapted


def project(product: Callable, num_dims: int, x: jax.Array, node: Blocked) -> jax.Array:
    """`product(x, w, num_dims)` of the dense weight, which must be linear in x for the backward pass: it sees no x."""
    if node.scales is None and node.values.dtype == x.dtype:  # as it is stored, it is dense
        return product(x, node.values, num_dims)
    return _project(product, num_dims, x, node)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(product, num_dims, x, node):
    node, x = jax.lax.optimization_barrier((node, x))
    return product(x, node.dense(x.dtype), num_dims)


def _forward(product, num_dims, x, node):
    return _project(product, num_dims, x, node), node


def _backward(product, num_dims, node, dy):
    # One copy of a layer after another in the program has both passes in one place, where equal work would be merged.
    node, dy = jax.lax.optimization_barrier((node, dy))
    w = node.dense(dy.dtype)
    x = jnp.zeros((*dy.shape[: dy.ndim - (w.ndim - num_dims)], *w.shape[:num_dims]), dy.dtype)
    _, of_x = jax.vjp(lambda x: product(x, w, num_dims), x)
    return *of_x(dy), None


_project.defvjp(_forward, _backward)


def _is_made(w: Any) -> bool:
    return stored(w) or isinstance(w, Adapted)


def takes_stored(fn: Callable) -> Callable:
    """`fn(weights, x, *args, **options)` also of weights of which some are stored or have adapters: dense in the dtype of x.

    The backward pass then computes `fn` again.
    """

    @functools.wraps(fn)
    def run(weights: Any, x: jax.Array, *args, **options):
        if not any(map(_is_made, jax.tree.leaves(weights, is_leaf=_is_made))):
            return fn(weights, x, *args, **options)

        def again(weights, x, *args):
            made = jax.tree.map(lambda w: w.dense(x.dtype) if _is_made(w) else w, weights, is_leaf=_is_made)
            return fn(made, x, *args, **options)

        return jax.checkpoint(again)(weights, x, *args)

    return run
