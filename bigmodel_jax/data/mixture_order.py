"""Which part of a mixture each training example comes from: a pure function of the example's number.

A mixture is a list of legs: from one example on, parts are drawn by constant weights. A stage of the config begins a leg,
and so does the example at which a part has given all that its cap allows.
"""

import dataclasses
import fractions
import functools
import math

import numpy as np

from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Positive

SLOTS = 1 << 16  # examples after which the pattern of sources is repeated: the resolution of the weights
DIGITS = 9  # of a weight that a size gives: the last bits of a power differ between machines, and the order must not


@dataclasses.dataclass(frozen=True)
class Stage:
    """From this step on, examples are drawn by these weights, one a part; they need not add up to 1.

    Without weights, a part of n training rows has the weight n ** (1 / temperature): 1 draws in proportion to the rows, and
    the higher it is, the more alike are the shares (T5, arXiv:1910.10683, section 3.5.2; mT5, arXiv:2010.11934, section 3.1,
    writes alpha for 1 / temperature).
    """

    step: CountOrZero = 0
    weights: tuple[NonNegative, ...] = ()
    temperature: Positive = 1.0


def by_size(sizes: tuple[int, ...], temperature: float) -> tuple[float, ...]:
    """Weights of parts of so many rows; the largest has 1."""
    return tuple(round((size / max(sizes)) ** (1 / temperature), DIGITS) for size in sizes)


def too_low(weights: tuple[float, ...]) -> list[float]:
    """The weights that the pattern is too coarse to hold."""
    return [w for w in weights if 0 < w < sum(weights) / SLOTS]


def most_examples(max_epochs: tuple[float, ...], sizes: tuple[int, ...]) -> list[float]:
    """The most examples that each part gives, infinity for a part without a cap. max_epochs: one cap a part, where 0 stands for
    no cap; () where no part has one."""
    caps = max_epochs or (0,) * len(sizes)
    # The decimal number that the user wrote: 1.1 * 10 in binary floats is above 11.
    return [math.floor(fractions.Fraction(repr(c)) * n) if c else math.inf for c, n in zip(caps, sizes, strict=True)]


@dataclasses.dataclass(frozen=True)
class Leg:
    """The weights that hold from example `first` on, and how many examples each part has given before."""

    first: int
    weights: tuple[float, ...]
    taken: np.ndarray


class Mixture:
    """draw: example number -> (part, how manieth of its examples), in constant time.

    In every SLOTS examples of a leg each part has its share, spread evenly: in any run of examples, a part is at most
    a few examples off its weight. `end` is the example that no part may give any more; None: there is none.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        batch_size: int,
        sizes: tuple[int, ...] = (),
        max_epochs: tuple[float, ...] = (),
    ):
        """sizes: rows of each part, which stages without weights and caps need."""
        most = most_examples(max_epochs, sizes) if max_epochs else [math.inf] * len(stages[0].weights or sizes)
        self.legs, self.end = _legs(stages, batch_size, sizes, most)
        self._first = np.array([leg.first for leg in self.legs])

    def draw(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(part, nth), int64 like `examples`; ValueError for an example that no part may give."""
        if self.end is not None and examples.max() >= self.end:
            raise ValueError(f"data.max_epochs: {exhausted(self.end)}")
        part, nth = np.empty_like(examples), np.empty_like(examples)
        legs = np.searchsorted(self._first, examples, side="right") - 1
        for i in np.unique(legs):
            here, leg = legs == i, self.legs[i]
            pattern, place = _pattern(leg.weights), examples[here] - leg.first
            chosen = pattern.part[place % SLOTS]
            part[here] = chosen
            nth[here] = leg.taken[chosen] + _before(pattern, place)[np.arange(len(place)), chosen]
        return part, nth

    def given(self, example: int) -> np.ndarray:
        """(parts,) int64: the examples of each part before this one."""
        example = example if self.end is None else min(example, self.end)
        leg = self.legs[max(int(np.searchsorted(self._first, example, side="right")) - 1, 0)]
        return leg.taken + _before(_pattern(leg.weights), np.array(example - leg.first))


def exhausted(end: int) -> str:
    """What is to be said where a mixture ends."""
    return (
        f"after {end:,} examples every part with a weight has given all that it may; train fewer steps, raise a cap, or "
        "give another part a weight"
    )


def _legs(
    stages: tuple[Stage, ...], batch_size: int, sizes: tuple[int, ...], most: list[float]
) -> tuple[list[Leg], int | None]:
    """(legs in their order, the example at which nothing is left to give or None)."""
    legs, taken = [], np.zeros(len(most), np.int64)
    ends = [*(stage.step * batch_size for stage in stages[1:]), math.inf]
    for stage, end in zip(stages, ends, strict=True):
        begin, weights = stage.step * batch_size, stage.weights or by_size(sizes, stage.temperature)
        while begin < end:
            left = [most[i] - int(taken[i]) for i in range(len(most))]
            live = tuple(w if left[i] > 0 else 0.0 for i, w in enumerate(weights))
            if not any(live):
                return legs, begin
            legs.append(Leg(begin, live, taken))
            pattern = _pattern(live)
            until = min([end, *(begin + _length(pattern, i, left[i]) for i, w in enumerate(live) if w)])
            if until < math.inf:
                taken = taken + _before(pattern, np.array(until - begin))
            begin = until
    return legs, None


# ---------------------------------------------------------------- constant weights


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """part (SLOTS,): whose turn it is; before (SLOTS + 1, parts): how many turns each has had."""

    part: np.ndarray
    before: np.ndarray


@functools.lru_cache(maxsize=4)  # of a hundred parts one has 26 MB; a batch is seldom in two
def _pattern(weights: tuple[float, ...]) -> _Pattern:
    share = np.array(weights) / sum(weights) * SLOTS
    counts = np.floor(share).astype(np.int64)
    counts[np.argsort(counts - share, kind="stable")[: SLOTS - counts.sum()]] += 1
    part = np.repeat(np.arange(len(counts)), counts)
    nth = np.concatenate([np.arange(n) for n in counts])
    part = part[np.argsort((nth + 0.5) / counts[part], kind="stable")]
    turns = part[:, None] == np.arange(len(counts))
    before = np.concatenate([np.zeros((1, len(counts)), np.int32), np.cumsum(turns, axis=0, dtype=np.int32)])
    return _Pattern(part, before)


def _before(pattern: _Pattern, place: np.ndarray) -> np.ndarray:
    """(..., parts) int64: the examples of each part before `place` (...) of a leg."""
    rounds, rest = np.divmod(place, SLOTS)
    return np.asarray(rounds)[..., None] * pattern.before[-1].astype(np.int64) + pattern.before[rest]


def _length(pattern: _Pattern, part: int, count: float) -> float:
    """The examples of a leg until this part has given `count`; infinity where that never comes."""
    turns = np.flatnonzero(pattern.part == part)
    if count == math.inf or not len(turns):
        return math.inf
    rounds, rest = divmod(int(count) - 1, len(turns))
    return rounds * SLOTS + int(turns[rest]) + 1
