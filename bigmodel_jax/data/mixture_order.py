"""The part of a mixture that each training example comes from, as a pure function of its number.

The order is a list of legs, ranges of examples with constant weights. A leg begins with a stage of
the config, or when a part has given all the examples that its cap allows.
"""

import dataclasses
import fractions
import functools
import math

import numpy as np

from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Positive

SLOTS = 1 << 16  # the pattern of parts repeats after this many examples; this limits the resolution of weights
# Weights computed from sizes are rounded to this many digits. The last bits of a power differ
# between machines, and the order must not differ.
DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Stage:
    """The weights from a step on.

    Without `weights`, a part of n training rows has the weight n ** (1 / temperature). Temperature
    1 draws in proportion to the rows, and higher temperatures make the shares more equal (T5,
    arXiv:1910.10683, section 3.5.2; mT5, arXiv:2010.11934, section 3.1, writes alpha for 1 /
    temperature).
    """

    step: CountOrZero = 0
    "the first training step of the stage"
    weights: tuple[NonNegative, ...] = ()
    "one weight per part; they need not add up to 1; empty: by the parts' sizes"
    temperature: Positive = 1.0
    "without weights: how strongly the shares are equalized"


def by_size(sizes: tuple[int, ...], temperature: float) -> tuple[float, ...]:
    """Return the weights of parts with this many rows. The largest part has weight 1."""
    return tuple(round((size / max(sizes)) ** (1 / temperature), DIGITS) for size in sizes)


def too_low(weights: tuple[float, ...]) -> list[float]:
    """Return the weights that are too small for the resolution of the pattern."""
    return [w for w in weights if 0 < w < sum(weights) / SLOTS]


def most_examples(max_epochs: tuple[float, ...], sizes: tuple[int, ...]) -> list[float]:
    """Return the most examples that each part gives.

    The number is infinite for a part without a cap.

    `max_epochs` holds one cap per part, where 0 means no cap; () means that no part has one.
    """
    caps = max_epochs or (0,) * len(sizes)
    # The cap is taken as the decimal number that the user wrote: in binary floats 1.1 * 10 is above
    # 11.
    return [math.floor(fractions.Fraction(repr(c)) * n) if c else math.inf for c, n in zip(caps, sizes, strict=True)]


@dataclasses.dataclass(frozen=True)
class Leg:
    """A range of examples with constant weights.

    It begins at example `first`. `taken` counts the examples that each part gave before.
    """

    first: int
    weights: tuple[float, ...]
    taken: np.ndarray


class Mixture:
    """Maps an example number to (part, number of the example within the part) in constant time.

    Every SLOTS examples of a leg give each part its share, spread evenly: in any run of examples, a
    part's count differs from its weight by only a few. `end` is the first example that no part may
    give; None where there is no such example.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        batch_size: int,
        sizes: tuple[int, ...] = (),
        max_epochs: tuple[float, ...] = (),
    ):
        """Build the legs. Caps and stages without weights need `sizes`, the rows of each part."""
        most = most_examples(max_epochs, sizes) if max_epochs else [math.inf] * len(stages[0].weights or sizes)
        self.legs, self.end = _legs(stages, batch_size, sizes, most)
        self._first = np.array([leg.first for leg in self.legs])

    def draw(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (part, nth), int64 like `examples`. Raises ValueError beyond the mixture's end."""
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
        """Return (parts,) int64: how many examples each part gave before this one."""
        example = example if self.end is None else min(example, self.end)
        leg = self.legs[max(int(np.searchsorted(self._first, example, side="right")) - 1, 0)]
        return leg.taken + _before(_pattern(leg.weights), np.array(example - leg.first))


def exhausted(end: int) -> str:
    """Return the message for a mixture that has ended."""
    return (
        f"after {end:,} examples every part with a weight has given all that it may; train fewer steps, raise a cap, or "
        "give another part a weight"
    )


def _legs(
    stages: tuple[Stage, ...], batch_size: int, sizes: tuple[int, ...], most: list[float]
) -> tuple[list[Leg], int | None]:
    """Return (the legs in order, the first example that no part can give, or None)."""
    legs, taken = [], np.zeros(len(most), np.int64)
    ends = [*(stage.step * batch_size for stage in stages[1:]), math.inf]
    for stage, end in zip(stages, ends, strict=True):
        begin, weights = stage.step * batch_size, stage.weights or by_size(sizes, stage.temperature)
        while begin < end:
            left = [most[i] - int(taken[i]) for i in range(len(most))]
            # A part that has given all that its cap allows gets weight 0.
            live = tuple(w if left[i] > 0 else 0.0 for i, w in enumerate(weights))
            if not any(live):
                return legs, begin
            legs.append(Leg(begin, live, taken))
            pattern = _pattern(live)
            # The leg ends with its stage, or when the first part reaches its cap.
            until = min([end, *(begin + _length(pattern, i, left[i]) for i, w in enumerate(live) if w)])
            if until < math.inf:
                taken = taken + _before(pattern, np.array(until - begin))
            begin = until
    return legs, None


# ---------------------------------------------------------------- constant weights


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """The repeated pattern of a leg.

    part (SLOTS,): the part of each slot; before (SLOTS + 1, parts): the slots of each part before.
    """

    part: np.ndarray
    before: np.ndarray


@functools.lru_cache(maxsize=4)  # the pattern of 100 parts has 26 MB, and a batch rarely needs two
def _pattern(weights: tuple[float, ...]) -> _Pattern:
    share = np.array(weights) / sum(weights) * SLOTS
    counts = np.floor(share).astype(np.int64)
    # Shares are rounded down, and the slots that are left go to the largest remainders.
    counts[np.argsort(counts - share, kind="stable")[: SLOTS - counts.sum()]] += 1
    part = np.repeat(np.arange(len(counts)), counts)
    nth = np.concatenate([np.arange(n) for n in counts])
    # Each part's slots are centred in equal intervals, which spreads them evenly.
    part = part[np.argsort((nth + 0.5) / counts[part], kind="stable")]
    turns = part[:, None] == np.arange(len(counts))
    before = np.concatenate([np.zeros((1, len(counts)), np.int32), np.cumsum(turns, axis=0, dtype=np.int32)])
    return _Pattern(part, before)


def _before(pattern: _Pattern, place: np.ndarray) -> np.ndarray:
    """Return (..., parts) int64: the examples of each part before `place` (...) of a leg."""
    # The table is int32 to save memory. The examples of a long run need int64.
    rounds, rest = np.divmod(place, SLOTS)
    return np.asarray(rounds)[..., None] * pattern.before[-1].astype(np.int64) + pattern.before[rest]


def _length(pattern: _Pattern, part: int, count: float) -> float:
    """Return the length of a leg, in examples, at which this part has given `count` of them.

    The length is infinite if the part never gives this many.
    """
    turns = np.flatnonzero(pattern.part == part)
    if count == math.inf or not len(turns):
        return math.inf
    rounds, rest = divmod(int(count) - 1, len(turns))
    return rounds * SLOTS + int(turns[rest]) + 1
