"""Prompts on their way into a slot: padded, in pieces, and after what an earlier prompt has in common with them.

A prompt that is read in pieces lies in a cache of one row until its last piece; texts in the slots go on between two
pieces. A row is kept when its prompt is complete, so that a later prompt that begins alike needs no more than its rest.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Prompts are padded to a multiple of this at least.
PROMPT_MULTIPLE = 16
# Fewer tokens in common are read again: a row of its own costs more.
LEAST_SHARED = 32


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


class Read(NamedTuple):
    """A row and the prompt in it; columns: those that its tokens take, the padding between them included, by the number
    of tokens."""

    tokens: tuple[int, ...] = ()
    row: Any = None
    pads: tuple[tuple[int, int], ...] = ()

    def columns(self, num: int) -> int:
        """How many columns the first `num` tokens take."""
        return num + sum(pad for place, pad in self.pads if place < num)


class Prefixes:
    """The rows of the last `most` prompts; one that is used counts as the newest."""

    def __init__(self, most: int):
        self._most, self._kept = most, collections.OrderedDict()

    def keep(self, read: Read) -> None:
        if self._most:
            self._kept[read.tokens] = read
            self._kept.move_to_end(read.tokens)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forgets all: other weights have other keys and values."""
        self._kept.clear()

    def longest(self, prompt: Sequence[int], room: int) -> tuple[Read, int]:
        """What begins as the prompt does, and for how many tokens; room: columns that prompt and answer may take."""
        found, num = Read(), 0
        for read in self._kept.values():
            shared = min(_shared(read.tokens, prompt), len(prompt) - 1)
            fits = read.columns(shared) + len(prompt) - shared <= room
            if shared > max(num, LEAST_SHARED - 1) and fits:
                found, num = read, shared
        if num:
            self._kept.move_to_end(found.tokens)
        return found, num


def _shared(a: Iterable[int], b: Iterable[int]) -> int:
    """How many first tokens are the same."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class Reading:
    """A prompt that is being read. row: what holds its tokens up to `at`; piece: most tokens of a piece, 0 = all."""

    def __init__(self, prompt: Sequence[int], row: Any, begun: Read, at: int, piece: int):
        self._prompt, self.row, self._piece = prompt, row, piece
        self.at, self.shared = at, at
        self._pads = tuple((place, pad) for place, pad in begun.pads if place < at)

    def next(self, room: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(the place of the piece's first token, tokens, segments); the odd piece comes first. room: as in `longest`."""
        left = len(self._prompt) - self.at
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

    def read(self, row: Any) -> Read:
        return Read(tuple(self._prompt), row, self._pads)
