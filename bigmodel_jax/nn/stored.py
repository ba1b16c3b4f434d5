"""Functions of stored constants (core/storage.py) whose backward pass keeps no dense weight.

A dense weight made of a constant depends on nothing that is differentiated. Autodiff therefore
computes it in the forward pass and keeps it for the backward pass. In a scan over layers it would
keep the dense weights of all layers, which is the whole model. Here each pass makes the dense
weight again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core import sharding
from bigmodel_jax.core.storage import Blocked, stored
from bigmodel_jax.nn.decode_forms import Transposed
from bigmodel_jax.nn.lora import Adapted

TILE = 128  # rows of one pass of a TPU's matrix unit; each pass would make a fused weight again


def project(product: Callable, num_dims: int, x: jax.Array, node: Blocked) -> jax.Array:
    """`product(x, w, num_dims)` with the dense weight.

    It must be linear in x, because the backward pass has no x.
    """
    if node.scales is None and node.values.dtype == x.dtype:  # the stored form is dense already
        return product(x, node.values, num_dims)
    if isinstance(node, Transposed):
        return node.project(x)
    rows = math.prod(x.shape[: x.ndim - num_dims])
    if _is_spread(node) and rows <= TILE:
        return product(x, spread(node, x.dtype), num_dims)
    return _project(product, num_dims, x, node)


def _dense(node: Blocked, dtype: Any) -> jax.Array:
    return spread(node, dtype) if _is_spread(node) else node.dense(dtype)


def platform() -> str:
    """The platform of the step being traced; outside a mesh, that of JAX's devices."""
    mesh = sharding.current_mesh()
    return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def _is_spread(node: Blocked) -> bool:
    """Whether a TPU makes the dense weight inside the product that reads it (`spread`)."""
    if type(node) is not Blocked or platform() != "tpu" or node.kind != "int8" or node.last is None:
        return False
    # A TPU rounds the factors of a float32 product to bfloat16, so wider scales would lose bits.
    return node.scales.dtype == jnp.bfloat16


def spread(node: Blocked, dtype: Any) -> jax.Array:
    """The dense weight of int8 blocks: the scales are spread over their blocks by a product.

    The product's second factor is a matrix of zeros and ones, so the result equals `node.dense`. A
    TPU fuses this form into the product that reads the weight, which it then reads in 8 bits. It
    does not fuse the broadcast and reshape of `node.dense`: blocks of 64 have another layout.
    """
    *lead, blocks = node.scales.shape
    scales = node.scales.astype(jnp.float32)
    if blocks > 1:
        # The blocks of a shard are a dimension of their own: no device needs another's scales.
        shards = _shards(blocks, node.last)
        own = blocks // shards
        ones = jnp.repeat(jnp.eye(own, dtype=node.scales.dtype), node.shape[-1] // blocks, axis=1)
        apart = node.scales.reshape(*lead, shards, own)
        scales = jnp.tensordot(apart, ones, axes=1, preferred_element_type=jnp.float32).reshape(node.shape)
    return (node.values.astype(jnp.float32) * scales).astype(dtype)


def _shards(size: int, axis: str | None) -> int:
    """How many shards a dimension of this size and logical axis has in the step being traced."""
    mesh = sharding.current_mesh()
    if mesh is None or not axis:
        return 1
    (axes,) = sharding.fitting_spec((size,), axis)
    return math.prod(mesh.shape[name] for name in sharding.axis_names(axes))


def unembed(product: Callable, x: jax.Array, node: Blocked) -> jax.Array:
    """`product({"table": dense table}, x)`: logits (..., V) float32 by a table stored in blocks."""
    rows = math.prod(x.shape[:-1])
    if _is_spread(node) and rows <= TILE:
        return product({"table": spread(node, x.dtype)}, x)
    return takes_stored(product)({"table": node}, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(product, num_dims, x, node):
    return product(x, _dense(node, x.dtype), num_dims)


def _forward(product, num_dims, x, node):
    # A barrier would keep a GPU from fusing the dense weight into the product, so a program without
    # a backward pass has none.
    once, x = jax.lax.optimization_barrier((node, x))
    return product(x, _dense(once, x.dtype), num_dims), node


def _backward(product, num_dims, node, dy):
    # In an unrolled program both passes lie in one scope, where the compiler would merge equal work
    # and keep the dense weight. The barrier prevents this.
    node, dy = jax.lax.optimization_barrier((node, dy))
    w = _dense(node, dy.dtype)
    x = jnp.zeros((*dy.shape[: dy.ndim - (w.ndim - num_dims)], *w.shape[:num_dims]), dy.dtype)
    _, of_x = jax.vjp(lambda x: product(x, w, num_dims), x)
    return *of_x(dy), None


_project.defvjp(_forward, _backward)


def _is_made(w: Any) -> bool:
    return stored(w) or isinstance(w, Adapted)


def takes_stored(fn: Callable) -> Callable:
    """`fn(weights, x, *args, **options)`, also for weights that are stored or have adapters.

    `fn` gets them dense, in the dtype of x. The backward pass then computes `fn` again.
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
