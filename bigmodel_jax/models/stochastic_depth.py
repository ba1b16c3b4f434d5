"""Stochastic depth (Huang et al., arXiv:1603.09382): training drops layers of a stack at random."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Param, Tree
from bigmodel_jax.models.base import Entry, Model

_FOLD = 0x5D  # keeps these draws independent of those that the model makes of the same key


def with_stochastic_depth(model: Model, rate: float) -> Model:
    """The model whose n-th of L layers is dropped with probability rate * n / L.

    rate 0 returns the model itself. A layer's addition is divided by its probability of being kept,
    so that evaluation needs no change. All rows of a step, or of a microbatch, drop the same
    layers. Raises ValueError for a model that is not given in parts.
    """
    if not rate:
        return model
    parts = model.parts
    if parts is None:
        raise ValueError(f"train.stochastic_depth = {rate}: the model declares no stack of layers; it must be 0")
    num = _num_layers(model.spec[parts.stack])

    def enter(*args, rng=None, train: bool, **rest) -> Entry:
        entry = parts.enter(*args, rng=rng, train=train, **rest)
        return entry._replace(xs=(entry.xs, _draws(num, rate, rng))) if train else entry

    def block(layer, x, xs, *rest, train: bool) -> tuple[Any, Any]:
        if not train:
            return parts.block(layer, x, xs, *rest, train=train)
        xs, kept = xs
        new, ys = parts.block(layer, x, xs, *rest, train=train)
        return jax.tree.map(lambda before, after: before + kept.astype(after.dtype) * (after - before), x, new), ys

    return model._replace(apply=dataclasses.replace(parts, enter=enter, block=block))


def _draws(num: int, rate: float, rng: jax.Array | None) -> jax.Array:
    """Returns (num,) float32: 0 for a dropped layer, 1 / (probability of being kept) for others."""
    if rng is None:
        return jnp.ones((num,), jnp.float32)
    share = 1.0 - rate * jnp.arange(1, num + 1, dtype=jnp.float32) / num
    return jax.random.bernoulli(jax.random.fold_in(rng, _FOLD), share) / share


def _num_layers(spec: Tree) -> int:
    return jax.tree.leaves(spec, is_leaf=lambda x: isinstance(x, Param))[0].shape[0]
