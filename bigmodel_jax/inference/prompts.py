"""Prepares prompts for a slot: padding, reading in pieces, and reuse of earlier prompts' prefixes.

A prompt that is read in pieces stays in a cache of one row until its last piece, and the slots
continue between two pieces. The row of a complete prompt is kept, so that a later prompt with the
same start needs only the rest.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Prompts are padded at least to a multiple of this.
PROMPT_MULTIPLE = 16
# A shorter common prefix is read again, because copying its cache row costs more.
LEAST_SHARED = 32


def left_pad(prompt: Sequence[int], most: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments), each (1, P) int32, with the prompt at the end. Padding has segment 0."""
    tokens = np.zeros((1, min(bucket(len(prompt)), most)), np.int32)
    segments = np.zeros_like(tokens)
    tokens[0, -len(prompt) :] = prompt
    segments[0, -len(prompt) :] = 1
    return tokens, segments


def bucket(length: int) -> int:
    """The padded length, for few `prefill` programs: four lengths per doubling, multiples of 16."""
    step = max(PROMPT_MULTIPLE, 1 << max((length - 1).bit_length() - 3, 0))
    return -(-length // step) * step


class Read(NamedTuple):
    """A cache row and the prompt in it.

    pads: (position, columns) of the padding that lies between pieces of the prompt. adapters: the
    adapters that computed the row, as in `Request`.
    """

    tokens: tuple[int, ...] = ()
    row: Any = None
    pads: tuple[tuple[int, int], ...] = ()
    adapters: tuple[str, ...] | None = None

    def columns(self, num: int) -> int:
        """The number of columns that the first `num` tokens take, with the padding between them."""
        return num + sum(pad for place, pad in self.pads if place < num)


class Prefixes:
    """The cache rows of the last `most` prompts. A row becomes the newest when it is used.

    whole: a row serves only prompts that begin with all of its tokens (`decoder.can_be_cut`).
    """

    def __init__(self, most: int):
        self._most, self._kept, self.whole = most, collections.OrderedDict(), False

    def keep(self, read: Read) -> None:
        """Stores the row of a complete prompt, and drops the oldest if there are too many."""
        if self._most:
            self._kept[read.tokens, read.adapters] = read
            self._kept.move_to_end((read.tokens, read.adapters))
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Drops all rows, because other weights compute other keys and values."""
        self._kept.clear()

    def longest(self, prompt: Sequence[int], room: int, adapters: tuple[str, ...] | None = None) -> tuple[Read, int]:
        """(cache row, length of the shared prefix) of the kept prompt that shares most with this
        one.

        room: the columns that prompt and answer may take. adapters: the adapters that the prompt
        uses. A row of other adapters has other keys and values.
        """
        found, num = Read(), 0
        for read in (read for read in self._kept.values() if read.adapters == adapters):
            # At least one token must be read, because its logits start the answer.
            shared = min(_shared(read.tokens, prompt), len(prompt) - 1)
            fits = read.columns(shared) + len(prompt) - shared <= room and (
                not self.whole or shared == len(read.tokens)
            )
            # A longer prefix may not fit, because the padding between its pieces takes columns too.
            if shared > max(num, LEAST_SHARED - 1) and fits:
                found, num = read, shared
        if num:
            self._kept.move_to_end((found.tokens, found.adapters))
        return found, num


def _shared(a: Iterable[int], b: Iterable[int]) -> int:
    """The number of first tokens that are equal."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class Reading:
    """A prompt being read; row: the cache of its tokens up to `at`; piece: most tokens at a time, 0
    = all."""

    def __init__(self, prompt: Sequence[int], row: Any, begun: Read, at: int, piece: int):
        self._prompt, self.row, self._piece = prompt, row, piece
        self.at, self.shared = at, at
        self._pads = tuple((place, pad) for place, pad in begun.pads if place < at)

    def next(self, room: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(position of the piece's first token, tokens, segments).

        The first piece is the shorter one, so that all others have full length. room: as in
        `longest`.
        """
        left = len(self._prompt) - self.at
        # The remainder goes first, so that all later pieces have the same compiled shape.
        num = (left % self._piece or self._piece) if self._piece else left
        used = self.at + sum(pad for _, pad in self._pads)
        tokens, segments = left_pad(self._prompt[self.at : self.at + num], room - used - (left - num))
        first, self.at = self.at, self.at + num
        if pad := tokens.shape[1] - num:
            self._pads = (*self._pads, (first, pad))
        return first, tokens, segments

    @property
    def complete(self) -> bool:
        return self.at == len(self._prompt)

    def read(self, row: Any, adapters: tuple[str, ...] | None = None) -> Read:
        return Read(tuple(self._prompt), row, self._pads, adapters)
