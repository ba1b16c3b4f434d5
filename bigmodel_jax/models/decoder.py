"""What all decoder-only models share: parts around their blocks, decode cache, size checks.

Shapes: B batch, T tokens, S cache length, D embed, K kv heads, h head_dim, L layers, V vocab.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from bigmodel_jax.core.params import Init, Param, Tree, map_spec, zeros
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.core.storage import Blocked, Blocks, stored
from bigmodel_jax.models.base import Entry, Model, Out, parts_of
from bigmodel_jax.models.sizes import Cut, Divides, Multiple, padded
from bigmodel_jax.nn import linear, stack
from bigmodel_jax.nn.attention.attention import Where

SIZES = (
    Divides("num_kv_heads", "num_heads"),
    Cut("num_heads", "heads"),
    Cut("mlp_dim", "mlp"),
    Cut("vocab_size", "vocab", pad="pad_vocab"),
)
ROTARY = Multiple("head_dim", 2, "rotary positions turn pairs of dimensions")


def model(
    cfg, spec: Tree, *, embed: Callable, block: Callable, head: Callable, losses: Callable = lambda *_: {}
) -> Model:
    """A decoder of one stack of layers. Every function takes the model's config first.

    embed(cfg, params, tokens, positions, rng) -> (x, xs, shared): the embeddings (B, T, D), what
    each layer takes besides its cache, and a tuple of what all layers take besides the places of
    queries and keys.
    block(cfg, layer, x, (cache, xs), q_where, k_where, *shared, index, train) -> (x, (cache,
    found)): one layer. `cache` is that layer's.
    head(cfg, params, x) -> Head: the logits' inputs.
    losses(cfg, found, batch) -> dict: the auxiliary losses, made of what the layers returned in
    `found`.
    """
    before, after = functools.partial(enter, embed), functools.partial(leave, head, losses)
    parts = parts_of(cfg, before, functools.partial(with_new_columns, block), after)
    return Model(spec, parts, make_cache=functools.partial(make_cache, cfg))


def with_new_columns(block: Callable, cfg, layer: Tree, x_BTD, xs, *where, train: bool):
    """`block` that returns only the cache columns written in this call.

    A scan over layers would otherwise copy the whole cache for each generated token.
    """
    x_BTD, (cache, found) = block(cfg, layer, x_BTD, xs, *where, train=train)
    if isinstance(xs[0], dict):
        index, num = where[-1], x_BTD.shape[1]
        cache = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, num, axis=1), cache)
    return x_BTD, (cache, found)


def enter(embed: Callable, cfg, p: Tree, batch: dict, *, rng, train: bool, cache: "Cache | None") -> Entry:
    """Embeds tokens and says where queries and keys stand.

    batch: tokens, positions and segment_ids (B, T), which follow the tokens in the cache.
    """
    q_where, k_where, cache = where(batch, cache)
    x_BTD, xs, shared = embed(cfg, p, batch["tokens"], q_where.positions, rng)
    x_BTD = constrain(x_BTD, "batch", "seq", "embed")
    return Entry(x_BTD, (cache and cache.layers, xs), (q_where, k_where, *shared), (cache and cache.index,), cache)


def leave(head: Callable, losses: Callable, cfg, p: Tree, entry: Entry, x_BTD, ys, batch: dict, *, train: bool) -> Out:
    """Logits (B, T, V) float32, auxiliary losses, and the cache after this call."""
    layers, found = ys
    made, cache = head(cfg, p, x_BTD), entry.kept
    out = Out(made.logits(), losses=losses(cfg, found, batch), head=made)
    return out._replace(cache=cache and cache.advance(layers, batch["tokens"].shape[1]))


@struct.dataclass
class Cache:
    """The keys and values seen so far.

    layers: {"k", "v"}, each (L, B, S, K, h). positions, segments: (B, S) int32, of the columns.
    Segment 0 marks an empty or a padding column. index: the column that the next token takes, the
    same for all rows.

    The S columns form a ring: column 0 follows the last one. Masks compare positions and not
    columns, so a row may start at any column, and rows of unequal length share one index.
    """

    layers: Any
    positions: jax.Array
    segments: jax.Array
    index: jax.Array

    def advance(self, layers: Any, num: int) -> "Cache":
        """The cache after `num` more tokens.

        layers: for each array the new columns (L, B, num, ...) or all columns; unstacked layers:
        {"k", "v"} of each layer.
        """
        if isinstance(layers, stack.Apart):
            layers = stack.Apart(tuple(HeadsFirst(**_turned(one)) for one in layers.layers))
        elif isinstance(layers, dict):
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.index, axis=2)
            layers = jax.tree.map(lambda kept, new: write(kept, new.astype(kept.dtype)), self.layers, layers)
        return self.replace(layers=layers, index=(self.index + num) % self.positions.shape[1])


def make_cache(cfg, batch_size: int, length: int, dtype: Any) -> Cache:
    """The declaration of a cache for `length` tokens per row."""
    shape = (cfg.num_layers, batch_size, length, cfg.num_kv_heads, cfg.head_dim)
    keys = declared(shape, ("layers", "batch", "seq", "kv_heads", "head_dim"), dtype)
    return ring({"k": keys, "v": keys}, batch_size, length)


def declared(shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any) -> Param:
    """One array of a decode cache. The axis "batch" counts rows, "seq" the columns of the ring."""
    return Param(shape, axes, zeros(), jnp.dtype(dtype).name)


def ring(layers: Any, batch_size: int, length: int) -> Cache:
    """The declaration of a cache, given the declaration of its layers."""
    places = declared((batch_size, length), ("batch", "seq"), jnp.int32)
    return Cache(layers, places, places, declared((), (), jnp.int32))


@struct.dataclass
class HeadsFirst:
    """One layer's keys and values as (B, K, S, h).

    Attention multiplies them in this layout. In the layout (B, S, K, h), XLA's CPU backend would
    transpose a copy of both for every token.
    """

    k: Any
    v: Any


def apart(cache: Any) -> Any:
    """The cache, or its declaration, with unstacked layers.

    Caches of other models are returned unchanged.
    """
    if not isinstance(cache, Cache) or not isinstance(cache.layers, dict) or cache.layers.keys() != {"k", "v"}:
        return cache
    leaf = jax.tree.leaves(cache.layers, is_leaf=lambda x: isinstance(x, Param))[0]
    if isinstance(leaf, Param):
        layers = (HeadsFirst(**map_spec(_heads_first, cache.layers)),) * leaf.shape[0]
    else:
        layers = tuple(HeadsFirst(**_turned(one)) for one in stack.unstack(cache.layers))
    return cache.replace(layers=stack.Apart(layers))


def can_be_cut(cache: Cache) -> bool:
    """Whether a row of a declared cache can be cut back to its first tokens.

    An array of rows without columns is a state of all tokens, from which none can be taken.
    """
    arrays = jax.tree.leaves(cache, is_leaf=lambda x: isinstance(x, Param))
    return all("seq" in p.axes for p in arrays if "batch" in p.axes)


def narrowed(cache: Any) -> Any:
    """The declaration of a cache with int8 keys and values.

    Each head's vector has a bfloat16 scale. Raises ValueError for a cache that does not hold keys
    and values by heads.
    """
    if not isinstance(cache, Cache) or not isinstance(cache.layers, dict) or cache.layers.keys() != {"k", "v"}:
        raise ValueError(
            "cache = 'int8': this model's cache is not keys and values by heads alone; it must be 'compute'"
        )

    def one(p: Param) -> Blocked:
        scales = dataclasses.replace(p, shape=(*p.shape[:-1], 1), axes=(*p.axes[:-1], None), dtype="bfloat16")
        return Blocked(dataclasses.replace(p, dtype="int8"), scales)

    return cache.replace(layers=map_spec(one, cache.layers))


def _turned(layer: dict) -> dict:
    return jax.tree.map(lambda x: x.swapaxes(1, 2), layer)


def _heads_first(p: Param) -> Param:
    """The declaration of one layer, from the declaration `make_cache` gives for all layers."""

    def turned(x):
        _, rows, columns, heads, dim = x
        return (rows, heads, columns, dim)

    return dataclasses.replace(p, shape=turned(p.shape), axes=turned(p.axes))


def where(batch: dict, cache: Cache | None) -> tuple[Where, Where, Cache | None]:
    """Returns (places of the queries, places of the keys, the updated cache).

    The cache holds the new tokens' places. A batch without positions or segment_ids holds one
    document per row.
    """
    B, T = batch["tokens"].shape
    positions = batch.get("positions")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    segments = batch.get("segment_ids")
    if segments is None:
        segments = jnp.ones((B, T), jnp.int32)
    here = Where(positions, segments)
    if cache is None:
        return here, here, None
    cache = cache.replace(
        positions=jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.index)),
        segments=jax.lax.dynamic_update_slice(cache.segments, segments, (0, cache.index)),
    )
    return here, Where(cache.positions, cache.segments), cache


def update_cache(cache: Any, k: jax.Array, v: jax.Array, index: jax.Array) -> tuple[Any, Any]:
    """One layer's keys and values (B, S, K, h), with the new ones (B, T, K, h) written at `index`.

    The keys and values of an int8 cache are storage nodes (core/storage.py), which attention reads.
    """
    if cache is None:
        return k, v
    if isinstance(cache, HeadsFirst):
        new = _turned(_as_kept(cache.k, {"k": k, "v": v}))
        found = _turned(_written({"k": cache.k, "v": cache.v}, new, (0, 0, index, 0)))
    else:
        found = _written(cache, _as_kept(cache["k"], {"k": k, "v": v}), (0, index, 0, 0))
    return found["k"], found["v"]


def _as_kept(kept: Any, new: dict) -> dict:
    if not stored(kept):
        return new
    return {name: Blocks("int8", x.shape[-1], narrow=True).pack(x) for name, x in new.items()}


def _written(cache: dict, new: dict, at: tuple) -> dict:
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice(a, b.astype(a.dtype), at), cache, new)


def table_rows(cfg) -> int:
    """Rows of the embedding and the head: vocab_size rounded up to a multiple of pad_vocab."""
    return padded(cfg.vocab_size, cfg.pad_vocab)


def table_spec(cfg, init: Init) -> dict[str, Param]:
    """Returns {"table": (rows, D)}.

    The vocabulary's rows have the initial values of a table without padding.
    """
    rows = table_rows(cfg)

    def draw(key, shape, dtype):
        return jnp.pad(init.fn(key, (cfg.vocab_size, *shape[1:]), dtype), ((0, rows - cfg.vocab_size), (0, 0)))

    return linear.embedding_spec(rows, cfg.embed_dim, init=init if rows == cfg.vocab_size else Init(init.name, draw))
