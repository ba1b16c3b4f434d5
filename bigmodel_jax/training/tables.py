"""Converts parameters of another run to this run's mesh, storage and number of table rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Param
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.storage import Dense, dense
from bigmodel_jax.models.base import unpadded


def published(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter without the rows that `model.pad_vocab` adds."""
    plain = dataclasses.replace(config, model=unpadded(config.model))
    return {path: p.shape for path, p in params.paths(plain.make_model().spec).items()}


def fits(shape: tuple[int, ...], own: tuple[int, ...], p: Param) -> bool:
    """Whether values of `shape` can become `p` with published shape `own`. A vocabulary
    may grow.
    """
    pairs = zip(shape, own, p.axes, strict=True) if len(shape) == len(own) else ()
    return len(shape) == len(own) and all(a == b or (name == "vocab" and a < b) for a, b, name in pairs)


def resized(x: Any, own: tuple[int, ...], p: Param) -> Any:
    """A table with `own` rows: new rows are the mean of the old ones, padding rows are zero.

    With the mean of all rows, a new token's embedding changes the probabilities of other tokens
    least (Hewitt 2021, "Initializing new word embeddings for pretrained language models";
    transformers' `resize_token_embeddings` draws around the mean).
    """
    if not isinstance(x, jax.Array) or x.shape == p.shape:
        return x
    for dim, (have, n) in enumerate(zip(x.shape, own, strict=True)):
        if have < n:
            # The mean is computed in float32, because a bfloat16 sum stops growing long before the
            # last row.
            mean = jnp.mean(x.astype(jnp.float32), axis=dim, keepdims=True).astype(x.dtype)
            x = jnp.concatenate([x, jnp.repeat(mean, n - have, axis=dim)], axis=dim)
    return jnp.pad(x, [(0, n - have) for n, have in zip(p.shape, x.shape, strict=True)])


def laid(p: Param, shape: tuple[int, ...], dtype: str, mesh, parallel: ParallelConfig) -> jax.ShapeDtypeStruct:
    """An abstract array of `shape`, sharded like the parameter.

    A vocabulary of another size is replicated on every device.
    """
    # The mesh need not divide a vocabulary of another size than the parameter's.
    rules = parallel.rules if shape == p.shape else dataclasses.replace(parallel.rules, vocab=None)
    array = {"x": dataclasses.replace(p, shape=shape, storage=Dense())}
    where = sharding.placed(array, mesh, dataclasses.replace(parallel, rules=rules))["x"]
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def stored(p: Param, x: Any, own: Any) -> Any:
    """The value `x` in the form in which the parameter is stored.

    `own`, the parameter's node or its shapes, has the sharding and the dtypes of that form.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, own)
    if p.storage == Dense():
        return jax.device_put(dense(x, own.dtype), where).astype(own.dtype)
    if jax.tree.structure(x) == jax.tree.structure(own) and _shapes(x) == _shapes(own):
        return jax.device_put(x, where)
    return jax.jit(p.storage.pack, out_shardings=where)(dense(x, p.dtype))


def _shapes(tree: Any) -> list[tuple]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
