"""Generates texts by continuous batching. Each of a fixed number of slots holds a text at its own
position.

A text depends only on the weights and its request. Other texts and the number of slots do not
change it, except for rounding in products of other shapes.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.inference.compiled import (
    Compiled,
    Layout,
    compiled,
    for_decoding,
    is_apart,
    large_on_one_cpu,
    mesh_of,
    on_layout,
    platform_of,
    uncut,
)
from bigmodel_jax.inference.mixed import check_names, using
from bigmodel_jax.inference.prompts import Prefixes, Read, Reading, left_pad
from bigmodel_jax.inference.request import Constraint, Request, Token
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.inference.slots import Emitted, Programs, Slots, cache_dtype
from bigmodel_jax.inference.widen import widened
from bigmodel_jax.models import Model, decoder
from bigmodel_jax.nn import stack


class Engine:
    """Call `submit` for each request, then `step` until `num_unfinished` is 0.

    - slots: texts at a time; length: the most tokens of prompt and text in a slot
    - turns: the most tokens of a text per step
    - sample, stop: sampling settings and stop tokens for all texts; sample = None: each request has
      settings, and up to `tops` of the likeliest tokens are returned
    - layout: the mesh of slots and weights; None: the compiler follows the weights
    - piece: the most tokens of a prompt read between two steps; 0 = all
    - prefixes: number of earlier prompts whose cache is reused; like piece, only without a layout
    - cache: the dtype of keys and values; "" = as in `sample`
    - adapters: names of adapters in the weights; each request chooses among them
    """

    def __init__(
        self,
        model: Model,
        sample: SampleConfig | None = SampleConfig(),
        *,
        slots: int,
        length: int,
        stop: Sequence[int] = (),
        turns: int = 1,
        log_probs: bool = False,
        tops: int = 0,
        layout: Layout | None = None,
        piece: int = 0,
        prefixes: int = 0,
        cache: str = "",
        adapters: Sequence[str] = (),
    ):
        if model.make_cache is None:
            raise ValueError("model: this model has no decode cache, so it cannot generate")
        for name, value in (("slots", slots), ("length", length), ("turns", turns)):
            if value < 1:
                raise ValueError(f"{name} = {value}; it must be 1 or more")
        self._model, self._layout = model, layout and uncut(layout)
        programs = Programs.of(model, sample, tuple(stop), slots, length, turns, log_probs)
        self._programs = programs._replace(tops=tops, cache=cache or (sample.cache if sample else "compute"))
        self._widen = sample.widen if sample else "auto"
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._num_submitted = 0
        self.num_shared = 0  # tokens of prompts that were reused from earlier prompts
        self._piece, self._prefixes = piece, Prefixes(prefixes)
        self._by_rows = bool(piece or prefixes) and layout is None
        self._reading: tuple[int, Request, Reading] | None = None  # a prompt that is being read in pieces
        self._ids: list[int | None] = [None] * slots  # the request in each slot
        self._constraints: list[Constraint | None] = [None] * slots
        self._adapters: tuple[str, ...] = tuple(adapters)
        self._using: list[tuple[str, ...] | None] = [()] * slots  # the adapters of the text in each slot
        self._left = np.zeros(slots, np.int64)  # the most tokens that each slot may still get, without a fresh token
        self._fresh = False  # whether a slot has a token that no step has returned
        # Steps that are dispatched and not yet read: (the request in each slot, tokens that are
        # sure, result).
        self._flying: collections.deque[tuple[list, int, Emitted]] = collections.deque()
        self._compiled: Compiled | None = None
        self._slots: Slots | None = None

    def load(self, weights: Any, *, fresh: bool = False) -> None:
        """Uses these weights from now on. Texts that have begun keep their cached keys and values.

        fresh: restart the ring cache at its first column, so that later texts are equal to the last
        bit, whatever was generated before. No text may be unfinished then.
        """
        weights = on_layout(weights, self._model.spec, self._layout) if self._layout else weights
        weights = widened(weights) if self._widen == "auto" else weights
        platform = platform_of(weights)
        self._weights = weights = for_decoding(self._model.spec, weights, platform)
        self._prefixes.clear()
        apart = is_apart(platform) or large_on_one_cpu(weights)
        self._layered = stack.apart(self._model.spec, weights) if apart else weights
        if self._compiled is None:
            self._programs = self._programs._replace(apart=apart)
            self._programs.check(cache_dtype(weights))
            declared = self._programs.declared(1, cache_dtype(weights))
            self._by_rows &= isinstance(declared, decoder.Cache)
            self._prefixes.whole = self._by_rows and not decoder.can_be_cut(declared)
            self._compiled = compiled(self._programs, self._layout, mesh_of(weights), cache_dtype(weights))
        if self._slots is None or fresh:
            assert not (fresh and self.num_unfinished), "texts that have begun have keys and values"
            self._slots = self._compiled.empty()
            self._flying.clear()

    def submit(self, request: Request) -> int:
        """Queues a request and returns its number, which `step` gives with its tokens. Raises
        ValueError for a request that fits no slot.
        """
        num, length = len(request.prompt), self._programs.length
        if not num:
            raise ValueError("prompt = '': it is empty; give at least one character to continue from")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens = {request.max_tokens}; it must be 1 or more")
        needed = num + request.max_tokens
        if starts := self._programs.decoder_starts:
            needed = max(num, len(starts) + request.max_tokens)
        if needed > length:
            raise ValueError(
                f"max_tokens = {request.max_tokens}: with the prompt's {num} tokens it exceeds a slot's {length}"
            )
        check_names(self._adapters, request.adapters)
        number, self._num_submitted = self._num_submitted, self._num_submitted + 1
        self._waiting.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Drops a request that waits or has begun.

        No step returns more of it, and its slot becomes free.
        """
        self._waiting = collections.deque(entry for entry in self._waiting if entry[0] != number)
        if self._reading and self._reading[0] == number:
            self._reading = None
        if number in self._ids:
            self._free(self._ids.index(number))

    def _free(self, slot: int) -> None:
        self._ids[slot], self._left[slot], self._constraints[slot] = None, 0, None

    @property
    def num_unfinished(self) -> int:
        """The number of requests that wait, are being read or are in a slot."""
        return len(self._waiting) + bool(self._reading) + sum(number is not None for number in self._ids)

    def step(self) -> list[Token]:
        """The tokens of one step, in order for each text.

        The next step is dispatched before the host reads the last one. So if several steps follow
        one another, the first call returns nothing.
        """
        self._admit()
        out = []
        while self._flying and any(self._constraints):  # a constraint needs each token on the host before the next
            out += self._read()
        goes_on = any(n is not None and left for n, left in zip(self._ids, self._left, strict=True))
        if goes_on or self._fresh:
            self._dispatch()
            if len(self._flying) == 1 and self._left.any() and not any(self._constraints):
                return out
        return out + (self._read() if self._flying else [])

    # ---- between host and devices

    def _admit(self) -> None:
        """Fills free slots with waiting requests, in order. A prompt read in pieces gets one piece
        a step."""
        free = [slot for slot, number in enumerate(self._ids) if number is None]
        if self._reading:
            self._read_on(free.pop(0))
        while free and self._waiting and not self._reading:
            number, request = self._waiting.popleft()
            if self._by_rows and not request.inputs:  # equal tokens may stand for different images
                self._reading = (number, request, self._open(request))
                self._read_on(free.pop(0))
            else:
                self._begin(free.pop(0), number, request)

    def _open(self, request: Request) -> Reading:
        """Starts reading a prompt after the part that an earlier prompt shares with it."""
        room = self._programs.length - request.max_tokens
        found, shared = self._prefixes.longest(request.prompt, room, request.adapters)
        row = self._compiled.trimmed(found.row, np.int32(shared)) if shared else self._compiled.row()
        self.num_shared += shared
        return Reading(request.prompt, row, found if shared else Read(), shared, self._piece)

    def _read_on(self, slot: int) -> None:
        """Reads the next piece of a prompt. The last piece starts the text in the slot."""
        number, request, reading = self._reading
        room = self._programs.length - (request.max_tokens if reading.shared else 0)
        first, tokens, segments = reading.next(room)
        if not reading.complete:
            weights = using(self._weights, self._adapters, [request.adapters])
            reading.row = self._compiled.piece(weights, reading.row, np.int32(first), tokens, segments)
            return
        self._reading = None
        row = self._begin(slot, number, request, (reading.row, np.int32(first)), tokens, segments)
        self._prefixes.keep(reading.read(row, request.adapters))

    def _begin(self, slot: int, number: int, request: Request, row: tuple = (), tokens=None, segments=None) -> Any:
        """Starts a text in a slot, and returns the cache row with its whole prompt.

        row: (row with the prompt's earlier pieces, position of this piece), or () for a whole
        prompt.
        """
        if tokens is None:
            tokens, segments = left_pad(request.prompt, self._programs.length)
        source = np.array([request.seed, request.nth], np.uint32)
        arguments = [np.int32(slot), tokens, segments, source, np.int32(request.max_tokens)]
        if self._programs.sample is None:
            arguments.append(request.settings or Settings.of(SampleConfig()))
        if request.constraint:
            arguments.append(request.constraint.allowed()[None])
        weights = using(self._weights, self._adapters, [request.adapters])
        if row:
            self._slots, whole = self._compiled.begin(weights, self._slots, *row, *arguments)
        else:
            beside = request.inputs or {}
            self._slots, whole = self._compiled.prefill(weights, self._slots, *arguments, **beside), None
        if request.constraint:
            request.constraint.take(int(self._slots.token[slot]))
        self._ids[slot], self._left[slot], self._fresh = number, request.max_tokens - 1, True
        self._constraints[slot], self._using[slot] = request.constraint, request.adapters
        return whole

    def _dispatch(self) -> None:
        keep = np.array([number is not None for number in self._ids])
        waiting = bool(self._waiting)
        arguments, turns = [keep, np.bool_(waiting)], self._programs.turns
        if any(self._constraints):
            arguments.append(self._allowed())
            turns = 1
        weights = using(self._layered, self._adapters, self._using)
        self._slots, emitted = self._compiled.decode(weights, self._slots, *arguments)
        # A step may end early while requests wait, so the number of its tokens is not known yet.
        sure = 0 if waiting else turns
        self._flying.append((list(self._ids), sure, emitted))
        self._left, self._fresh = np.maximum(self._left - sure, 0), False

    def _allowed(self) -> np.ndarray:
        """(B, W): the tokens that each constraint allows; all tokens for slots without one."""
        rows = [one and one.allowed() for one in self._constraints]
        free = np.full_like(next(row for row in rows if row is not None), ~np.uint32(0))
        return np.stack([free if row is None else row for row in rows])

    def _read(self) -> list[Token]:
        """Reads the tokens of the oldest unread step, and frees the slots of finished texts."""
        ids, _, emitted = self._flying.popleft()
        tokens, log_probs, valid, left, tops = sharding.to_host(emitted)
        out = []
        for slot, number in enumerate(ids):
            # Another text may have taken the slot since this step was dispatched.
            if number is None or number != self._ids[slot]:
                continue
            turns = np.flatnonzero(valid[:, slot])
            ended = bool(left[slot] == 0)
            for turn in turns:
                last = ended and bool(turn == turns[-1])
                best = () if tops is None else _tops(tops.ids[turn, slot], tops.log_probs[turn, slot])
                out.append(Token(number, int(tokens[turn, slot]), float(log_probs[turn, slot]), last, best))
                # The constraint already has the first token: `_begin` has given it.
                if turn and self._constraints[slot]:
                    self._constraints[slot].take(int(tokens[turn, slot]))
            self._left[slot] = max(left[slot] - sum(sure for _, sure, _ in self._flying), 0)
            if ended:
                self._free(slot)
        return out


def _tops(ids: np.ndarray, log_probs: np.ndarray) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of one slot; () if the request did not ask for them, which log
    probabilities of 0 show.
    """
    asked = bool(len(ids)) and bool(log_probs.any())
    return tuple(zip(ids.tolist(), log_probs.tolist(), strict=True)) if asked else ()
