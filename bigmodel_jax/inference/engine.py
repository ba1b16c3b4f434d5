"""Texts from a model by continuous batching: a fixed number of slots, each with a text of its own at a place of its own.

A text is a function of the weights and its request: neither the texts beside it nor the number of slots change it, up
to the rounding of products of other shapes.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import sharding
from bigmodel_jax.inference.compiled import Compiled, Layout, compiled, large_on_one_cpu, mesh_of, uncut
from bigmodel_jax.inference.prompts import Prefixes, Read, Reading, left_pad
from bigmodel_jax.inference.sampling import Settings
from bigmodel_jax.inference.slots import Emitted, Programs, Slots, cache_dtype
from bigmodel_jax.inference.widen import widened
from bigmodel_jax.models import Model, decoder
from bigmodel_jax.nn import stack


class Constraint(Protocol):
    """What the tokens of one text may be, as the tokens before them decide."""

    def allowed(self) -> np.ndarray:
        """(W,) uint32: bit n of word w says whether token 32 w + n may be the next."""
        ...

    def take(self, token: int) -> None:
        """The text goes on with this token."""
        ...


class Request(NamedTuple):
    """A prompt (token ids) to continue by up to `max_tokens`; its draws are made of `seed`, `nth` and the position alone.

    nth: which of the texts that are drawn with one seed. settings, constraint: for an engine without a `sample`. inputs:
    what the model reads beside the prompt's tokens, arrays of one row (1, ...), such as the image that tokens stand for.
    """

    prompt: Sequence[int]
    max_tokens: int
    seed: int = 0
    nth: int = 0
    settings: Settings | None = None
    constraint: Constraint | None = None
    inputs: Mapping[str, np.ndarray] | None = None


class Token(NamedTuple):
    """One token of one text. log_prob: of the model itself, at temperature 1; 0 unless the engine was told `log_probs`.

    A text ends with a stop token, which is given out as well, or with its request's last token. tops: (id, log
    probability) of the likeliest tokens in its place, where the request's settings ask for them.
    """

    id: int
    token: int
    log_prob: float
    finished: bool
    tops: tuple[tuple[int, float], ...] = ()


class Engine:
    """`submit` requests, then call `step` until `num_unfinished` is 0.

    slots: texts at a time. length: tokens of prompt and text together that a slot has room for. turns: most tokens of a
    text in one step. sample, stop: how every text is drawn, and the tokens that end it; sample = None: by the settings of
    its request, with up to `tops` of the likeliest tokens. layout: where slots and weights lie; None leaves it to the
    compiler, after the weights. piece: most tokens of a prompt that are read between two steps, 0 = all; prefixes: rows of
    earlier prompts that are kept, for prompts that begin alike; both without a layout, and for decoders alone.
    cache: what keys and values are kept in; empty: as `sample` has it.
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
    ):
        if model.make_cache is None:
            raise ValueError("model: this model has no decode cache, so it cannot generate")
        for name, value in (("slots", slots), ("length", length), ("turns", turns)):
            if value < 1:
                raise ValueError(f"{name} = {value}; it must be 1 or more")
        if layout and layout.mesh.shape["stage"] > 1:
            raise ValueError(
                f"parallel.stage = {layout.mesh.shape['stage']}: texts are generated without a pipeline; give its "
                "devices to another axis"
            )
        self._model, self._layout = model, layout and uncut(layout)
        programs = Programs.of(model, sample, tuple(stop), slots, length, turns, log_probs)
        self._programs = programs._replace(tops=tops, cache=cache or (sample.cache if sample else "compute"))
        self._widen = sample.widen if sample else "auto"
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._num_submitted = 0
        self.num_shared = 0  # tokens of prompts that earlier prompts had read
        self._piece, self._prefixes = piece, Prefixes(prefixes)
        self._by_rows = bool(piece or prefixes) and layout is None
        self._reading: tuple[int, Request, Reading] | None = None  # a prompt that is read in pieces
        self._ids: list[int | None] = [None] * slots  # of the request in each slot
        self._constraints: list[Constraint | None] = [None] * slots
        self._left = np.zeros(slots, np.int64)  # at most so many tokens still come beside a fresh one
        self._fresh = False  # a slot has a token that no step has given out
        self._flying: collections.deque[tuple[list, int, Emitted]] = collections.deque()
        self._compiled: Compiled | None = None
        self._slots: Slots | None = None

    def load(self, weights: Any, *, fresh: bool = False) -> None:
        """Generates from these weights from now on; texts that have begun go on with the keys and values they have.

        fresh: the ring begins at its first column, so that texts that are submitted afterwards are the same to the last
        bit whatever was generated before; no text may be unfinished.
        """
        self._weights = weights = widened(weights) if self._widen == "auto" else weights
        self._prefixes.clear()
        apart = large_on_one_cpu(weights)
        self._layered = stack.apart(self._model.spec, weights) if apart else weights
        if self._compiled is None:
            self._programs = self._programs._replace(apart=apart)
            self._programs.check(cache_dtype(weights))
            self._by_rows &= isinstance(self._programs.declared(1, cache_dtype(weights)), decoder.Cache)
            self._compiled = compiled(self._programs, self._layout, mesh_of(weights), cache_dtype(weights))
        if self._slots is None or fresh:
            assert not (fresh and self.num_unfinished), "texts that have begun have keys and values"
            self._slots = self._compiled.empty()
            self._flying.clear()

    def submit(self, request: Request) -> int:
        """The request's number, by which `step` calls it; ValueError for one that no slot has room for."""
        num, length = len(request.prompt), self._programs.length
        if not num:
            raise ValueError("prompt = '': it is empty; give at least one character to continue from")
        if request.max_tokens < 1:
            raise ValueError(f"max_tokens = {request.max_tokens}; it must be 1 or more")
        needed = num + request.max_tokens
        if self._programs.decoder_start is not None:
            needed = max(num, 1 + request.max_tokens)
        if needed > length:
            raise ValueError(
                f"max_tokens = {request.max_tokens}: with the prompt's {num} tokens it is more than a slot's {length}"
            )
        number, self._num_submitted = self._num_submitted, self._num_submitted + 1
        self._waiting.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Gives up a request, waiting or begun: no step gives out more of it, and its slot is free."""
        self._waiting = collections.deque(entry for entry in self._waiting if entry[0] != number)
        if self._reading and self._reading[0] == number:
            self._reading = None
        if number in self._ids:
            self._free(self._ids.index(number))

    def _free(self, slot: int) -> None:
        self._ids[slot], self._left[slot], self._constraints[slot] = None, 0, None

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + bool(self._reading) + sum(number is not None for number in self._ids)

    def step(self) -> list[Token]:
        """The tokens of one step, in order for each text.

        The next step is on its way to the device before the host reads the last: a step may give out nothing, as the
        first does where more are to come.
        """
        self._admit()
        out = []
        while self._flying and any(self._constraints):  # which need each token on the host before the next
            out += self._read()
        goes_on = any(n is not None and left for n, left in zip(self._ids, self._left, strict=True))
        if goes_on or self._fresh:
            self._dispatch()
            if len(self._flying) == 1 and self._left.any() and not any(self._constraints):
                return out
        return out + (self._read() if self._flying else [])

    # ---- between host and devices

    def _admit(self) -> None:
        """Prefills free slots with what waits, in order; of a prompt in pieces, one piece a step."""
        free = [slot for slot, number in enumerate(self._ids) if number is None]
        if self._reading:
            self._read_on(free.pop(0))
        while free and self._waiting and not self._reading:
            number, request = self._waiting.popleft()
            if self._by_rows and not request.inputs:  # equal tokens of two images are no equal prompts
                self._reading = (number, request, self._open(request))
                self._read_on(free.pop(0))
            else:
                self._begin(free.pop(0), number, request)

    def _open(self, request: Request) -> Reading:
        """The prompt after what it has in common with an earlier one."""
        found, shared = self._prefixes.longest(request.prompt, self._programs.length - request.max_tokens)
        row = self._compiled.trimmed(found.row, np.int32(shared)) if shared else self._compiled.row()
        self.num_shared += shared
        return Reading(request.prompt, row, found if shared else Read(), shared, self._piece)

    def _read_on(self, slot: int) -> None:
        """The next piece; with the last one the text begins in the slot."""
        number, request, reading = self._reading
        room = self._programs.length - (request.max_tokens if reading.shared else 0)
        first, tokens, segments = reading.next(room)
        if not reading.complete:
            reading.row = self._compiled.piece(self._weights, reading.row, np.int32(first), tokens, segments)
            return
        self._reading = None
        row = self._begin(slot, number, request, (reading.row, np.int32(first)), tokens, segments)
        self._prefixes.keep(reading.read(row))

    def _begin(self, slot: int, number: int, request: Request, row: tuple = (), tokens=None, segments=None) -> Any:
        """The text begins in a slot. row: what holds a prompt's earlier pieces, and the place where this one begins; what
        holds all of them is returned."""
        if tokens is None:
            tokens, segments = left_pad(request.prompt, self._programs.length)
        source = np.array([request.seed, request.nth], np.uint32)
        arguments = [np.int32(slot), tokens, segments, source, np.int32(request.max_tokens)]
        if self._programs.sample is None:
            arguments.append(request.settings or Settings.of(SampleConfig()))
        if request.constraint:
            arguments.append(request.constraint.allowed()[None])
        if row:
            self._slots, whole = self._compiled.begin(self._weights, self._slots, *row, *arguments)
        else:
            beside = request.inputs or {}
            self._slots, whole = self._compiled.prefill(self._weights, self._slots, *arguments, **beside), None
        if request.constraint:
            request.constraint.take(int(self._slots.token[slot]))
        self._ids[slot], self._left[slot], self._fresh = number, request.max_tokens - 1, True
        self._constraints[slot] = request.constraint
        return whole

    def _dispatch(self) -> None:
        keep = np.array([number is not None for number in self._ids])
        waiting = bool(self._waiting)
        arguments, turns = [keep, np.bool_(waiting)], self._programs.turns
        if any(self._constraints):
            arguments.append(self._allowed())
            turns = 1
        self._slots, emitted = self._compiled.decode(self._layered, self._slots, *arguments)
        # With requests waiting a step may end before its last turn.
        sure = 0 if waiting else turns
        self._flying.append((list(self._ids), sure, emitted))
        self._left, self._fresh = np.maximum(self._left - sure, 0), False

    def _allowed(self) -> np.ndarray:
        """(B, W): what each constraint allows, and all tokens in the other slots."""
        rows = [one and one.allowed() for one in self._constraints]
        free = np.full_like(next(row for row in rows if row is not None), ~np.uint32(0))
        return np.stack([free if row is None else row for row in rows])

    def _read(self) -> list[Token]:
        """The tokens of the oldest step that has not been read; whoever has ended leaves a free slot."""
        ids, _, emitted = self._flying.popleft()
        tokens, log_probs, valid, left, tops = sharding.to_host(emitted)
        out = []
        for slot, number in enumerate(ids):
            if number is None or number != self._ids[slot]:
                continue
            turns = np.flatnonzero(valid[:, slot])
            ended = bool(left[slot] == 0)
            for turn in turns:
                last = ended and bool(turn == turns[-1])
                best = () if tops is None else _tops(tops.ids[turn, slot], tops.log_probs[turn, slot])
                out.append(Token(number, int(tokens[turn, slot]), float(log_probs[turn, slot]), last, best))
                if turn and self._constraints[slot]:  # a slot's first token was taken when it was drawn
                    self._constraints[slot].take(int(tokens[turn, slot]))
            self._left[slot] = max(left[slot] - sum(sure for _, sure, _ in self._flying), 0)
            if ended:
                self._free(slot)
        return out


def _tops(ids: np.ndarray, log_probs: np.ndarray) -> tuple[tuple[int, float], ...]:
    """() where none was asked for: no token's log probability is 0 among several."""
    asked = bool(len(ids)) and bool(log_probs.any())
    return tuple(zip(ids.tolist(), log_probs.tolist(), strict=True)) if asked else ()
