"""The engine's programs for its slots: `prefill` fills one slot, and `decode` continues all slots.

All rows write to the same column of the cache, which is a ring (models/decoder.py). A prompt is
read into a cache of one row, which is rolled so that the prompt ends at the ring's position. So no
row needs an index of its own, and no write needs a scatter.

Shapes: B slots, S cache columns, P tokens of a padded prompt, V vocab, N turns of a call, K
likeliest tokens, W words of 32 tokens.
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
from bigmodel_jax.inference.sampling import Settings, allowed_only, sample, sample_each
from bigmodel_jax.models import Model, decoder
from bigmodel_jax.models.base import Out


class Tops(NamedTuple):
    """The likeliest tokens of each row and their log probabilities, (B, K); zeros if not asked."""

    ids: jax.Array
    log_probs: jax.Array


class Slots(NamedTuple):
    """The state on the devices between calls, with a row per slot (B,).

    - token: the newest token, which the model has not read; position: its position in the text
    - left: how many tokens may follow; 0 if the text has ended or the slot is free
    - fresh: whether `decode` has not returned the token yet; log_prob: the token's log-probability
    - keys: for random draws; settings, tops: None if all texts have the same settings
    """

    cache: Any
    token: jax.Array
    position: jax.Array
    left: jax.Array
    fresh: jax.Array
    log_prob: jax.Array
    keys: jax.Array
    settings: Settings | None = None
    tops: Tops | None = None


class Emitted(NamedTuple):
    """One call's tokens, log_probs, valid (N + 1, B); left (B,) after it; tops (N + 1, B, K)."""

    tokens: jax.Array
    log_probs: jax.Array
    valid: jax.Array
    left: jax.Array
    tops: Tops | None = None


def cache_dtype(weights: Any) -> Any:
    """The dtype of a decode cache: that of the weights that are not quantized."""
    leaves = (x for x in jax.tree.leaves(weights, is_leaf=storage.stored) if not storage.stored(x))
    return next(jnp.dtype(x.dtype) for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact))


class Programs(NamedTuple):
    """The parameters that the programs are compiled for:

    - sample: settings of all texts; None: each slot has its own
    - log_probs: whether they are computed; otherwise they are 0
    - apart: whether `decode` gets unstacked layers, with unstacked caches
    - tops: number of likeliest tokens returned; cache: as `SampleConfig.cache`
    """

    apply: Callable
    make_cache: Callable
    decoder_starts: tuple[int, ...]
    sample: SampleConfig | None
    stop: tuple[int, ...]
    slots: int
    length: int
    turns: int
    log_probs: bool
    apart: bool = False
    tops: int = 0
    cache: str = "compute"

    @classmethod
    def of(cls, model: Model, *rest) -> "Programs":
        return cls(model.apply, model.make_cache, model.decoder_starts, *rest)

    # ---- the state

    def declared(self, rows: int, dtype: Any) -> Any:
        cache = self.make_cache(rows, self.length, dtype)
        return decoder.narrowed(cache) if self.cache == "int8" else cache

    def check(self, dtype: Any) -> None:
        """Raises ValueError, one line, if the model's make_cache declares no cache."""
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
        """The state with all slots free."""
        zeros = jnp.zeros(self.slots, jnp.int32)
        keys = jax.vmap(jax.random.key)(zeros)
        slots = Slots(params.empty(self.kept(dtype)), zeros, zeros, zeros, zeros > 0, zeros.astype(jnp.float32), keys)
        if self.sample is not None:
            return slots
        settings = jax.tree.map(lambda x: jnp.full(self.slots, x), Settings.of(SampleConfig(temperature=0)))
        return slots._replace(settings=settings, tops=self.no_tops(self.slots))

    def no_tops(self, rows: int) -> Tops:
        return Tops(jnp.zeros((rows, self.tops), jnp.int32), jnp.zeros((rows, self.tops)))

    # ---- a new request

    def prefill(self, weights, slots: Slots, *request, **beside) -> Slots:
        """`begin` for a whole prompt, with the same arguments from `slot` on."""
        row = params.empty(self.declared(1, cache_dtype(weights)))
        return self.begin(weights, slots, row, 0, *request, **beside)[0]

    def begin(
        self, weights, slots, row, first, slot, tokens, segments, source, num, settings=None, allowed=None, **inputs
    ) -> tuple[Slots, Any]:
        """(slots with the prompt and its first new token in `slot`, the row with the whole prompt).

        tokens, segments: (1, P), padded on the left with segment 0. row: holds the tokens before
        position `first`. source: (2,) uint32, seed and number for random draws. num: tokens to
        generate. settings: the slot's, as scalars. allowed: (1, W), the tokens that may come first.
        inputs: further model inputs.
        """
        key = jax.random.fold_in(jax.random.key(source[0]), source[1])
        encoder = {}
        if self.decoder_starts:
            encoder = {"encoder_tokens": tokens, "encoder_segment_ids": segments}
            tokens = jnp.asarray([self.decoder_starts], jnp.int32)
            segments = jnp.ones_like(tokens)
        batch = placed(tokens, segments, first) | encoder | inputs
        out = self.apply(weights, batch, cache=row)
        position = batch["positions"][:, -1] + 1
        settings = jax.tree.map(lambda x: jnp.asarray(x)[None], settings)
        token, log_prob, tops = self.draw(last_logits(out), key[None], position, settings, allowed)
        left = jnp.where(self.stops(token, settings), 0, num - 1)
        rows = Slots(None, token, position, left, jnp.ones(1, bool), log_prob, key[None], settings, tops)
        one = decoder.apart(out.cache) if self.apart else out.cache
        cache = insert(self.kept(cache_dtype(weights)), slots.cache, one, slot)
        fields = jax.tree.map(lambda old, new: old.at[slot].set(new[0]), tuple(slots[1:]), tuple(rows[1:]))
        return Slots(cache, *fields), out.cache

    def piece(self, weights, row, first, tokens, segments) -> Any:
        """The row with more tokens of its prompt, from position `first` on."""
        return self.apply(weights, placed(tokens, segments, first), cache=row).cache

    # ---- all slots

    def decode(self, weights, slots: Slots, keep, waiting, allowed=None) -> tuple[Slots, Emitted]:
        """Makes up to `turns` tokens per slot; fewer if all texts end, or one while requests wait.

        keep: (B,) bool; False ends the slot's text. allowed: (B, W), the tokens that may come
        next. With it, each slot gets one token.
        """
        turns = self.turns if allowed is None else 1
        slots = slots._replace(left=jnp.where(keep, slots.left, 0))
        busy = slots.fresh | (slots.left > 0)
        shape = (turns + 1, self.slots)
        tops = jax.tree.map(lambda x: jnp.zeros((turns + 1, *x.shape), x.dtype), slots.tops)
        out = Emitted(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, bool), slots.left, tops)

        def more(carry):
            turn, slots, _ = carry
            ended = jnp.any(busy & (slots.left == 0))
            return (turn < turns + 1) & jnp.any(slots.left > 0) & ~(waiting & ended)

        def go_on(carry):
            turn, slots, out = carry
            going = slots.left > 0
            slots = self.turn(weights, slots, going, allowed)
            return turn + 1, slots, emit(out, turn, slots, going)

        first = emit(out, 0, slots, slots.fresh & keep)
        begun = (1, slots._replace(fresh=jnp.zeros_like(keep)), first)
        # One turn needs no loop. Compilers copy what a loop carries before it starts.
        _, slots, out = go_on(begun) if self.turns == 1 else jax.lax.while_loop(more, go_on, begun)
        return slots, out._replace(left=slots.left)

    def turn(self, weights, slots: Slots, going: jax.Array, allowed=None) -> Slots:
        """One more token for every slot that is `going`. The others write padding to the cache."""
        batch = {
            "tokens": slots.token[:, None],
            "positions": slots.position[:, None],
            "segment_ids": going[:, None].astype(jnp.int32),
        }
        out = self.apply(weights, batch, cache=slots.cache)
        position = slots.position + going
        settings = slots.settings
        if settings is not None:  # settings of free slots must not count
            settings = settings._replace(
                temperature=jnp.where(going, settings.temperature, 0), tops=going & settings.tops
            )
        token, log_prob, tops = self.draw(out.value[:, 0], slots.keys, position, settings, allowed)
        left = jnp.where(going & ~self.stops(token, settings), slots.left - 1, 0)
        token = jnp.where(going, token, slots.token)
        return slots._replace(cache=out.cache, token=token, position=position, left=left, log_prob=log_prob, tops=tops)

    def draw(self, logits, keys, position, settings=None, allowed=None) -> tuple[jax.Array, jax.Array, Tops | None]:
        """(tokens, log probabilities at temperature 1, likeliest tokens) from logits (B, V)."""
        keys = jax.vmap(jax.random.fold_in)(keys, position)
        within = logits if allowed is None else allowed_only(logits, allowed)
        if self.sample is None:
            token = sample_each(within, keys, settings)
            return token, *self.scores(logits, token, settings)
        token = sample(within, keys, self.sample)
        if not self.log_probs:
            return token, jnp.zeros(token.shape), None
        logits = logits.astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1), None

    def scores(self, logits: jax.Array, token: jax.Array, settings: Settings) -> tuple[jax.Array, Tops]:
        """(log probability of each token, likeliest tokens); zeros unless some row asks."""

        def found(logits):
            log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
            best, ids = jax.lax.top_k(log_probs, self.tops)
            return jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0], Tops(ids, best)

        def none(logits):
            return jnp.zeros(token.shape), self.no_tops(len(token))

        return jax.lax.cond(settings.tops.any(), found, none, logits)

    def stops(self, token: jax.Array, settings: Settings | None = None) -> jax.Array:
        """(B,) bool: whether the token ends its text."""
        if not self.stop:
            return jnp.zeros(token.shape, bool)
        hit = jnp.isin(token, jnp.array(self.stop, jnp.int32))
        return hit if settings is None else hit & settings.ends


def placed(tokens: jax.Array, segments: jax.Array, first: Any) -> dict[str, jax.Array]:
    """A batch of tokens (1, P) whose first token after the padding has position `first`."""
    positions = first + jnp.maximum(jnp.cumsum(segments, axis=1) - 1, 0)
    return {"tokens": tokens, "positions": positions, "segment_ids": segments}


def trimmed(row: decoder.Cache, num: jax.Array) -> decoder.Cache:
    """A row with only its first `num` tokens. The next token takes the column after them."""
    inside = (row.segments > 0) & (row.positions < num)
    last = jnp.argmax(inside[0] & (row.positions[0] == num - 1)).astype(row.index.dtype)
    return row.replace(segments=jnp.where(inside, row.segments, 0), index=(last + 1) % row.segments.shape[1])


def last_logits(out: Out) -> jax.Array:
    """The last position's logits (B, V). Logits of all positions are a fifth of a prompt's work."""
    if out.head is None:
        return out.value[:, -1]
    last = dataclasses.replace(out.head, x=jax.lax.slice_in_dim(out.head.x, -1, None, axis=1))
    return jax.lax.index_in_dim(last.logits(), 0, 1, keepdims=False)


def emit(out: Emitted, turn: int | jax.Array, slots: Slots, valid: jax.Array) -> Emitted:
    """Stores the slots' newest tokens as those of `turn`."""
    return out._replace(
        tokens=out.tokens.at[turn].set(slots.token),
        log_probs=out.log_probs.at[turn].set(slots.log_prob),
        valid=out.valid.at[turn].set(valid),
        tops=jax.tree.map(lambda all_, new: all_.at[turn].set(new), out.tops, slots.tops),
    )


def insert(declared: Any, cache: Any, row: Any, slot: jax.Array) -> Any:
    """The cache with `row` as its row `slot`, rolled so that it ends at the ring's position.

    Columns that a row does not fill are zero, such as the encoder memory of a shorter text.
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
