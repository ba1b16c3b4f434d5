"""The engine's two programs over a fixed number of slots: `prefill` fills one slot with a prompt, `decode` lets all of
them go on by some tokens.

All rows write to one column of the cache, which is a ring (models/decoder.py). A prompt is read into a cache of one row
and inserted rolled, so that it ends where the ring stands: no row needs an index, and no write a scatter.

Shapes: B slots, S columns of the cache, P tokens of a padded prompt, V vocab, N turns of a call.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params, storage
from bigmodel_jax.core.params import Param
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.inference.sampling import sample
from bigmodel_jax.models import Model, decoder
from bigmodel_jax.models.base import Out


class Slots(NamedTuple):
    """What stays on the devices from call to call, a row per slot (B,).

    token: the newest, not read by the model yet; position: its place in its text; left: how many may follow it, 0 where
    the text has ended or the slot is free; fresh: `decode` has not given the token out yet; log_prob: the token's;
    keys: what the request's draws are made of.
    """

    cache: Any
    token: jax.Array
    position: jax.Array
    left: jax.Array
    fresh: jax.Array
    log_prob: jax.Array
    keys: jax.Array


class Emitted(NamedTuple):
    """What one call gave out: (N + 1, B) tokens, log_probs and valid (whether there is one); left (B,) at its end."""

    tokens: jax.Array
    log_probs: jax.Array
    valid: jax.Array
    left: jax.Array


def cache_dtype(weights: Any) -> Any:
    """What a decode cache holds: the type of the weights, but for those that are stored in small numbers with scales."""
    leaves = (x for x in jax.tree.leaves(weights, is_leaf=storage.stored) if not storage.stored(x))
    return next(jnp.dtype(x.dtype) for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact))


class Programs(NamedTuple):
    """What the programs are compiled for. log_probs: whether they are computed; without, they are 0. apart: whether
    `decode` is given layers that lie apart, whose caches then do as well."""

    apply: Callable
    make_cache: Callable
    decoder_start: int | None
    sample: SampleConfig
    stop: tuple[int, ...]
    slots: int
    length: int
    turns: int
    log_probs: bool
    apart: bool = False

    @classmethod
    def of(cls, model: Model, *rest) -> "Programs":
        return cls(model.apply, model.make_cache, model.decoder_start, *rest)

    # ---- what is kept

    def declared(self, rows: int, dtype: Any) -> Any:
        cache = self.make_cache(rows, self.length, dtype)
        return decoder.narrowed(cache) if self.sample.cache == "int8" else cache

    def check(self, dtype: Any) -> None:
        """ValueError, one line, where the model's make_cache declares no cache."""
        leaves = jax.tree.leaves(self.declared(1, dtype), is_leaf=lambda x: isinstance(x, Param))
        if wrong := [leaf for leaf in leaves if not isinstance(leaf, Param)]:
            raise ValueError(
                f"model: make_cache returns {type(wrong[0]).__name__}; it must declare each array as a Param, whose axes name "
                "the rows ('batch') and the columns ('seq'), as models/decoder.py `declared` does"
            )

    def kept(self, dtype: Any) -> Any:
        """The declaration of the slots' cache."""
        declared = self.declared(self.slots, dtype)
        return decoder.apart(declared) if self.apart else declared

    def empty(self, dtype: Any) -> Slots:
        """All slots free."""
        zeros = jnp.zeros(self.slots, jnp.int32)
        keys = jax.vmap(jax.random.key)(zeros)
        return Slots(params.empty(self.kept(dtype)), zeros, zeros, zeros, zeros > 0, zeros.astype(jnp.float32), keys)

    # ---- a new request

    def prefill(self, weights, slots: Slots, slot, tokens, segments, source, num_tokens) -> Slots:
        """`slot` holds the prompt (1, P), padded on the left with segment 0, and its first new token of `num_tokens`.

        source: the request's seed and number, (2,) uint32, of which its draws are made.
        """
        key = jax.random.fold_in(jax.random.key(source[0]), source[1])
        dtype = cache_dtype(weights)
        cache = params.empty(self.declared(1, dtype))
        encoder = {}
        if self.decoder_start is not None:
            encoder = {"encoder_tokens": tokens, "encoder_segment_ids": segments}
            segments = jnp.ones((1, 1), jnp.int32)
            tokens = self.decoder_start * segments
        positions = jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
        batch = {"tokens": tokens, "positions": positions, "segment_ids": segments, **encoder}
        out = self.apply(weights, batch, cache=cache)
        position = positions[:, -1] + 1
        token, log_prob = self.draw(last_logits(out), key[None], position)
        left = jnp.where(self.stops(token), 0, num_tokens - 1)
        rows = Slots(None, token, position, left, jnp.ones(1, bool), log_prob, key[None])
        row = decoder.apart(out.cache) if self.apart else out.cache
        cache = insert(self.kept(dtype), slots.cache, row, slot)
        fields = zip(slots[1:], rows[1:], strict=True)
        return Slots(cache, *(old.at[slot].set(new[0]) for old, new in fields))

    # ---- all of them

    def decode(self, weights, slots: Slots, keep, waiting) -> tuple[Slots, Emitted]:
        """Up to `turns` tokens of every slot, until no text goes on, or one has ended and others are `waiting`.

        keep: (B,) bool; the text of a slot where it is False is given up.
        """
        slots = slots._replace(left=jnp.where(keep, slots.left, 0))
        busy = slots.fresh | (slots.left > 0)
        shape = (self.turns + 1, self.slots)
        out = Emitted(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, bool), slots.left)

        def more(carry):
            turn, slots, _ = carry
            ended = jnp.any(busy & (slots.left == 0))
            return (turn < self.turns + 1) & jnp.any(slots.left > 0) & ~(waiting & ended)

        def go_on(carry):
            turn, slots, out = carry
            going = slots.left > 0
            slots = self.turn(weights, slots, going)
            return turn + 1, slots, emit(out, turn, slots, going)

        first = emit(out, 0, slots, slots.fresh & keep)
        begun = (1, slots._replace(fresh=jnp.zeros_like(keep)), first)
        # One turn needs no loop, before which a compiler copies what the loop carries.
        _, slots, out = go_on(begun) if self.turns == 1 else jax.lax.while_loop(more, go_on, begun)
        return slots, out._replace(left=slots.left)

    def turn(self, weights, slots: Slots, going: jax.Array) -> Slots:
        """One token more of every slot that is `going`; in the cache, the others write padding."""
        batch = {
            "tokens": slots.token[:, None],
            "positions": slots.position[:, None],
            "segment_ids": going[:, None].astype(jnp.int32),
        }
        out = self.apply(weights, batch, cache=slots.cache)
        position = slots.position + going
        token, log_prob = self.draw(out.value[:, 0], slots.keys, position)
        left = jnp.where(going & ~self.stops(token), slots.left - 1, 0)
        token = jnp.where(going, token, slots.token)
        return slots._replace(cache=out.cache, token=token, position=position, left=left, log_prob=log_prob)

    def draw(self, logits: jax.Array, keys: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tokens, their log probabilities), each (B,), of logits (B, V): what the model says, at temperature 1."""
        token = sample(logits, jax.vmap(jax.random.fold_in)(keys, position), self.sample)
        if not self.log_probs:
            return token, jnp.zeros(token.shape)
        logits = logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)

    def stops(self, token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.array(self.stop, jnp.int32)) if self.stop else jnp.zeros(token.shape, bool)


def last_logits(out: Out) -> jax.Array:
    """(B, V) of the last place alone: those of a whole prompt cost a fifth of its products, and more with a large table."""
    if out.head is None:
        return out.value[:, -1]
    last = dataclasses.replace(out.head, x=jax.lax.slice_in_dim(out.head.x, -1, None, axis=1))
    return jax.lax.index_in_dim(last.logits(), 0, 1, keepdims=False)


def emit(out: Emitted, turn: int | jax.Array, slots: Slots, valid: jax.Array) -> Emitted:
    """The slots' newest tokens as those of `turn`."""
    return out._replace(
        tokens=out.tokens.at[turn].set(slots.token),
        log_probs=out.log_probs.at[turn].set(slots.log_prob),
        valid=out.valid.at[turn].set(valid),
    )


def insert(declared: Any, cache: Any, row: Any, slot: jax.Array) -> Any:
    """The cache with the one row of `row` as its row `slot`; the row ends at the column where the ring stands.

    What a row does not fill up, such as the memory of a shorter text, is zero.
    """
    leaves, treedef = jax.tree.flatten(declared, is_leaf=lambda x: isinstance(x, Param))
    pairs = list(zip(leaves, treedef.flatten_up_to(cache), treedef.flatten_up_to(row), strict=True))
    turn = sum(here - there for p, here, there in pairs if not p.axes)

    def one(p: Param, here: jax.Array, there: jax.Array) -> jax.Array:
        if "batch" not in p.axes:
            return here
        at = p.axes.index("batch")
        short = [0 if i == at else size - n for i, (size, n) in enumerate(zip(p.shape, there.shape, strict=True))]
        there = jnp.pad(there, [(0, n) for n in short])
        if "seq" in p.axes:
            there = jnp.roll(there, turn, p.axes.index("seq"))
        start = [slot if i == at else 0 for i in range(here.ndim)]
        return constrain(jax.lax.dynamic_update_slice(here, there.astype(here.dtype), start), *p.axes)

    return jax.tree.unflatten(treedef, [one(*leaf) for leaf in pairs])
