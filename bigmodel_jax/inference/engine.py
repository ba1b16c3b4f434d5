"""Texts from a model by continuous batching: a fixed number of slots, each with a text of its own at a place of its own.

A text is a function of the weights and its request: neither the texts beside it nor the number of slots change it, up
to the rounding of products of other shapes.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel_jax.config import SampleConfig
from bigmodel_jax.core import params, processes, sharding
from bigmodel_jax.core.sharding import Rules
from bigmodel_jax.inference.slots import Emitted, Programs, Slots, cache_dtype
from bigmodel_jax.inference.widen import widened
from bigmodel_jax.models import Model
from bigmodel_jax.nn import stack

# From so many bytes of weights on, a CPU generates from layers that lie apart: half the time a token (SmolLM2-135M), for
# a program with a copy of the layer per layer, which takes longer to compile.
APART_FROM = 1 << 26
# Prompts are padded to a multiple of this at least.
PROMPT_MULTIPLE = 16


class Request(NamedTuple):
    """A prompt (token ids) to continue by up to `max_tokens`; its draws are made of `seed`, `nth` and the position alone.

    nth: which of the texts that are drawn with one seed.
    """

    prompt: Sequence[int]
    max_tokens: int
    seed: int = 0
    nth: int = 0


class Token(NamedTuple):
    """One token of one text. log_prob: of the model itself, at temperature 1; 0 unless the engine was told `log_probs`.

    A text ends with a stop token, which is given out as well, or with its request's last token.
    """

    id: int
    token: int
    log_prob: float
    finished: bool


class Layout(NamedTuple):
    """The mesh of an engine, without stages, and what lies on which of its axes; the slots are the batch."""

    mesh: Mesh
    rules: Rules = Rules()


class Engine:
    """`submit` requests, then call `step` until `num_unfinished` is 0.

    slots: texts at a time. length: tokens of prompt and text together that a slot has room for. turns: most tokens of a
    text in one step. sample, stop: how every text is drawn, and the tokens that end it. layout: where slots and weights
    lie; None leaves it to the compiler, after the weights.
    """

    def __init__(
        self,
        model: Model,
        sample: SampleConfig = SampleConfig(),
        *,
        slots: int,
        length: int,
        stop: Sequence[int] = (),
        turns: int = 1,
        log_probs: bool = False,
        layout: Layout | None = None,
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
        self._programs = Programs.of(model, sample, tuple(stop), slots, length, turns, log_probs)
        self._waiting: collections.deque[tuple[int, Request]] = collections.deque()
        self._num_submitted = 0
        self._ids: list[int | None] = [None] * slots  # of the request in each slot
        self._left = np.zeros(slots, np.int64)  # at most so many tokens still come beside a fresh one
        self._fresh = False  # a slot has a token that no step has given out
        self._flying: collections.deque[tuple[list, int, Emitted]] = collections.deque()
        self._compiled: Jitted | None = None
        self._slots: Slots | None = None

    def load(self, weights: Any, *, fresh: bool = False) -> None:
        """Generates from these weights from now on; texts that have begun go on with the keys and values they have.

        fresh: the ring begins at its first column, so that texts that are submitted afterwards are the same to the last
        bit whatever was generated before; no text may be unfinished.
        """
        self._weights = weights = widened(weights) if self._programs.sample.widen == "auto" else weights
        apart = _large_on_one_cpu(weights)
        self._layered = stack.apart(self._model.spec, weights) if apart else weights
        if self._compiled is None:
            self._programs = self._programs._replace(apart=apart)
            self._programs.check(cache_dtype(weights))
            self._compiled = _compile(self._programs, self._layout, _mesh_of(weights), cache_dtype(weights))
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
        if number in self._ids:
            self._free(self._ids.index(number))

    def _free(self, slot: int) -> None:
        self._ids[slot], self._left[slot] = None, 0

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + sum(number is not None for number in self._ids)

    def step(self) -> list[Token]:
        """The tokens of one step, in order for each text.

        The next step is on its way to the device before the host reads the last: a step may give out nothing, as the
        first does where more are to come.
        """
        self._admit()
        goes_on = any(n is not None and left for n, left in zip(self._ids, self._left, strict=True))
        if goes_on or self._fresh:
            self._dispatch()
            if len(self._flying) == 1 and self._left.any():
                return []
        return self._read() if self._flying else []

    # ---- between host and devices

    def _admit(self) -> None:
        """Prefills free slots with what waits."""
        for slot, taken in enumerate(self._ids):
            if taken is None and self._waiting:
                number, request = self._waiting.popleft()
                tokens, segments = left_pad(request.prompt, self._programs.length)
                source = np.array([request.seed, request.nth], np.uint32)
                arguments = (np.int32(slot), tokens, segments, source, np.int32(request.max_tokens))
                self._slots = self._compiled.prefill(self._weights, self._slots, *arguments)
                self._ids[slot], self._left[slot], self._fresh = number, request.max_tokens - 1, True

    def _dispatch(self) -> None:
        keep = np.array([number is not None for number in self._ids])
        waiting = bool(self._waiting)
        self._slots, emitted = self._compiled.decode(self._layered, self._slots, keep, np.bool_(waiting))
        # With requests waiting a step may end before its last turn.
        sure = 0 if waiting else self._programs.turns
        self._flying.append((list(self._ids), sure, emitted))
        self._left, self._fresh = np.maximum(self._left - sure, 0), False

    def _read(self) -> list[Token]:
        """The tokens of the oldest step that has not been read; whoever has ended leaves a free slot."""
        ids, _, emitted = self._flying.popleft()
        tokens, log_probs, valid, left = sharding.to_host(emitted)
        out = []
        for slot, number in enumerate(ids):
            if number is None or number != self._ids[slot]:
                continue
            turns = np.flatnonzero(valid[:, slot])
            ended = bool(left[slot] == 0)
            for turn in turns:
                last = ended and bool(turn == turns[-1])
                out.append(Token(number, int(tokens[turn, slot]), float(log_probs[turn, slot]), last))
            self._left[slot] = max(left[slot] - sum(sure for _, sure, _ in self._flying), 0)
            if ended:
                self._free(slot)
        return out


class Jitted(NamedTuple):
    """An engine's programs under `jax.jit`; places: shardings of the slots that they give back, None where the compiler
    chooses them."""

    empty: Any
    prefill: Any
    decode: Any
    places: Slots | None


@functools.lru_cache(maxsize=8)
def _compile(programs: Programs, layout: Layout | None, mesh: Mesh | None, dtype: Any) -> Jitted:
    """The programs, each of which no process of a job runs before all have compiled it."""
    made = jitted(programs, layout, mesh, dtype)
    together = processes.compiled_together if layout else lambda program: program
    return made._replace(prefill=together(made.prefill), decode=together(made.decode))


def uncut(layout: Layout) -> Layout:
    """The layout with the sequence whole: one token has none to cut, and along `seq` all devices do the same."""
    return layout._replace(rules=dataclasses.replace(layout.rules, seq=None, residual_seq=None))


def jitted(programs: Programs, layout: Layout | None, mesh: Mesh | None, dtype: Any) -> Jitted:
    """The programs, each with the slots in one layout, so that none is compiled twice.

    mesh: that of the weights where there is no layout. dtype: of the cache.
    """

    def traced(fn):
        @functools.wraps(fn)
        def inside(*arguments):
            if layout is None:
                return fn(*arguments)
            with sharding.use(layout.mesh, layout.rules):
                return fn(*arguments)

        return inside

    mesh = layout.mesh if layout else mesh
    kept = whole = None
    if mesh is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        kept = jax.tree.map(lambda _: whole, jax.eval_shape(functools.partial(programs.empty, dtype)))
    if layout is not None:
        kept = kept._replace(cache=_cache_shardings(programs.kept(dtype), layout))
    return Jitted(
        jax.jit(traced(functools.partial(programs.empty, dtype)), out_shardings=kept),
        jax.jit(traced(programs.prefill), out_shardings=kept, donate_argnums=1),
        jax.jit(traced(programs.decode), out_shardings=kept and (kept, whole), donate_argnums=1),
        kept,
    )


def _cache_shardings(declared: Any, layout: Layout) -> Any:
    def one(p: params.Param) -> NamedSharding:
        return NamedSharding(layout.mesh, sharding.fitting_spec(p.shape, *p.axes) if p.axes else PartitionSpec())

    with sharding.use(layout.mesh, layout.rules):
        return params.map_spec(one, declared)


def _arrays(weights: Any) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(weights) if isinstance(x, jax.Array)]


def _mesh_of(weights: Any) -> Mesh | None:
    """The mesh of several devices on which the weights lie; None where they lie on one."""
    meshes = [x.sharding.mesh for x in _arrays(weights) if isinstance(x.sharding, NamedSharding)]
    return meshes[0] if meshes and meshes[0].size > 1 else None


def _large_on_one_cpu(weights: Any) -> bool:
    devices = {device for x in _arrays(weights) for device in x.devices()}
    size = sum(x.nbytes for x in _arrays(weights))
    return size >= APART_FROM and len(devices) == 1 and devices.pop().platform == "cpu"


def left_pad(prompt: Sequence[int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments), each (1, P) int32, so that the prompt ends in the last column; padding is segment 0."""
    tokens = np.zeros((1, min(bucket(len(prompt)), most)), np.int32)
    segments = np.zeros_like(tokens)
    tokens[0, -len(prompt) :] = prompt
    segments[0, -len(prompt) :] = 1
    return tokens, segments


def bucket(length: int) -> int:
    """The next of few lengths for which `prefill` is compiled: four in each doubling, all multiples of 16."""
    step = max(PROMPT_MULTIPLE, 1 << max((length - 1).bit_length() - 3, 0))
    return -(-length // step) * step
