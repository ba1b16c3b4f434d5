"""Several data sets as one: which of them each training example comes from, by weights that may change at given steps.

The examples of one source are taken in its own shuffled order, each once per pass, whatever the weights are; evaluation
reads every row of every source once. Nothing is kept but the number of the next batch.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from bigmodel_jax.core.ranges import CountOrZero, NonNegative
from bigmodel_jax.data import shuffle
from bigmodel_jax.data.base import DataConfig, Rows
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

SLOTS = 1 << 16  # examples after which the pattern of sources is repeated: the resolution of the weights


@dataclasses.dataclass(frozen=True)
class Stage:
    """From this step on, examples are drawn by these weights, one a source; they need not add up to 1."""

    step: CountOrZero = 0
    weights: tuple[NonNegative, ...] = ()


class Mixture:
    """draw: example number -> (source, how manieth of its examples), in constant time.

    In every SLOTS examples of a stage each source has its share, spread evenly: in any run of examples, a source is at most
    a few examples off its weight.
    """

    def __init__(self, stages: tuple[Stage, ...], batch_size: int):
        self.first = np.array([stage.step * batch_size for stage in stages])
        self.patterns = [_pattern(stage) for stage in stages]
        # taken[s, i]: the examples of source i in the stages before s
        lengths = np.diff(self.first)
        taken = [_before(pattern, length) for pattern, length in zip(self.patterns, lengths, strict=False)]
        self.taken = np.cumsum([np.zeros(len(stages[0].weights), np.int64), *taken], axis=0)

    def draw(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, nth), int64 like `examples`."""
        source, nth = np.empty_like(examples), np.empty_like(examples)
        stages = np.searchsorted(self.first, examples, side="right") - 1
        for s in np.unique(stages):
            here = stages == s
            pattern, place = self.patterns[s], examples[here] - self.first[s]
            chosen = pattern.source[place % SLOTS]
            source[here] = chosen
            nth[here] = self.taken[s, chosen] + _before(pattern, place)[np.arange(len(place)), chosen]
        return source, nth


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """source (SLOTS,): whose turn it is; before (SLOTS + 1, sources): how many turns each has had."""

    source: np.ndarray
    before: np.ndarray


def _pattern(stage: Stage) -> _Pattern:
    share = np.array(stage.weights) / sum(stage.weights) * SLOTS
    counts = np.floor(share).astype(np.int64)
    counts[np.argsort(counts - share, kind="stable")[: SLOTS - counts.sum()]] += 1
    source = np.repeat(np.arange(len(counts)), counts)
    nth = np.concatenate([np.arange(n) for n in counts])
    source = source[np.argsort((nth + 0.5) / counts[source], kind="stable")]
    turns = source[:, None] == np.arange(len(counts))
    return _Pattern(source, np.concatenate([np.zeros((1, len(counts)), np.int64), np.cumsum(turns, axis=0)]))


def _before(pattern: _Pattern, place: np.ndarray) -> np.ndarray:
    """(..., sources): the examples of each source before `place` (...) of a stage."""
    rounds, rest = np.divmod(place, SLOTS)
    return np.asarray(rounds)[..., None] * pattern.before[-1] + pattern.before[rest]


# ---------------------------------------------------------------- the data config


@dataclasses.dataclass(frozen=True)
class MixtureData(DataConfig):
    """Rows of several data configs, mixed in training by weights.

    All parts give the same arrays and, where they are text, share one tokenizer (`tokenizer.path`, or bytes). What only some
    parts add in evaluation is left out.
    """

    endless = True
    compared: ClassVar = DataConfig.compared | {"stages": "training"}

    parts: tuple[DataConfig, ...] = ()
    stages: tuple[Stage, ...] = ()
    "weights over the parts, and from which step they hold; the first from step 0"

    def __post_init__(self):
        steps = [stage.step for stage in self.stages]
        if len(self.parts) < 2:
            raise ValueError(f"data.parts: {len(self.parts)} are given; a mixture has two or more")
        if steps[:1] != [0] or steps != sorted(set(steps)):
            raise ValueError(f"data.stages: steps {steps}; they must begin with 0 and rise")
        for i, stage in enumerate(self.stages):
            if len(stage.weights) != len(self.parts) or not sum(stage.weights) > 0:
                raise ValueError(
                    f"data.stages.{i}.weights = {stage.weights!r}; it must have {len(self.parts)} numbers, not all 0"
                )
            low = [w for w in stage.weights if 0 < w < sum(stage.weights) / SLOTS]
            if low:
                raise ValueError(f"data.stages.{i}.weights: {low[0]} is less than 1/{SLOTS} of all; give more, or 0")

    def open(self, split: str) -> "MixedRows":
        self._check_tokenizers()
        rows = []
        for i, part in enumerate(self._parts()):
            with _named(i):
                rows.append(part.open(split))
        return MixedRows(rows, self.stages)

    def row(self) -> dict[str, Field]:
        first, *others = (part.row() for part in self._parts())
        return {name: field for name, field in first.items() if all(name in row for row in others)}

    def requirements(self) -> dict:
        needs = {}
        for i, part in enumerate(self._parts()):
            with _named(i):
                own = part.requirements()
            for name, value in own.items():
                number = isinstance(value, int) and not isinstance(value, bool)
                if not number and needs.get(name, value) != value:
                    raise ValueError(f"data.parts.{i} needs model.{name} = {value!r}, those before it {needs[name]!r}")
                needs[name] = max(needs.get(name, value), value) if number else value
        return needs

    def save_artifacts(self, folder) -> None:
        for part in reversed(self._parts()):  # the first has the last word
            part.save_artifacts(folder)

    def conditions(self, num: int):
        return self._parts()[0].conditions(num)

    def open_tokenizer(self) -> Tokenizer | None:
        return self._parts()[0].open_tokenizer()

    def reads(self) -> dict:
        found = {}
        for i, part in enumerate(self._parts()):
            found |= {f"data.parts.{i}{name.removeprefix('data')}": what for name, what in part.reads().items()}
        return found

    def _parts(self) -> list[DataConfig]:
        return [dataclasses.replace(part, cache_dir=part.cache_dir or self.cache_dir) for part in self.parts]

    def _check_tokenizers(self) -> None:
        known = [tokenizer and tokenizer.model.to_str() for tokenizer in (p.open_tokenizer() for p in self._parts())]
        for i, text in enumerate(known):
            if text != known[0]:
                raise ValueError(
                    f"data.parts.{i}: its tokenizer is not that of data.parts.0; give all parts one tokenizer.json "
                    "(`data CONFIG --train-tokenizer FILE` writes one)"
                )


@contextlib.contextmanager
def _named(i: int) -> Iterator[None]:
    """An error of a part speaks of `data`; this says of which part."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.parts.{i}: {error}") from error


class MixedRows:
    """One split: the rows of all parts, one part after another; `order` says which of them training takes."""

    def __init__(self, parts: list[Rows], stages: tuple[Stage, ...]):
        self.parts, self.stages = parts, stages
        self.offsets = np.cumsum([0, *(len(part) for part in parts)])
        self._mixtures: dict[int, Mixture] = {}
        self._kinds = {train: _common(parts, train) for train in (True, False)}

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def order(self, start: np.ndarray, examples: np.ndarray, batch_size: int) -> np.ndarray:
        """The rows of these training examples."""
        if batch_size not in self._mixtures:
            self._mixtures[batch_size] = Mixture(self.stages, batch_size)
        source, nth = self._mixtures[batch_size].draw(examples)
        rows = np.empty_like(examples)
        for i in np.unique(source):
            here, own = source == i, shuffle.mix(start + np.array([i + 1], np.uint64) * shuffle.GOLDEN)
            rows[here] = self.offsets[i] + shuffle.order(own, nth[here], len(self.parts[i]))
        return rows

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        part = np.searchsorted(self.offsets, indices, side="right") - 1
        kinds = self._kinds[noise is not None]
        out = {name: np.empty((len(indices), *shape), dtype) for name, (shape, dtype) in kinds.items()}
        for i in np.unique(part):
            here = part == i
            found = self.parts[i].batch(indices[here] - self.offsets[i], None if noise is None else noise[here])
            for name, x in out.items():
                x[here] = found[name]
        return out


def _common(parts: list[Rows], train: bool) -> dict[str, tuple]:
    """{name: (shape, type)} of the arrays of a row that all parts give; ValueError where they differ in one."""
    noise = np.zeros(1, np.uint64) if train else None
    rows = [part.batch(np.zeros(1, np.int64), noise) for part in parts]
    kinds = [{name: (x.shape[1:], x.dtype) for name, x in row.items()} for row in rows]
    for i, kind in enumerate(kinds):
        for name in kind.keys() | kinds[0].keys() if train else kind.keys() & kinds[0].keys():
            if kind.get(name) != kinds[0].get(name):
                said = [f"{k[name][1]} {k[name][0]}" if name in k else "none" for k in (kind, kinds[0])]
                raise ValueError(
                    f"data.parts.{i}: its rows have {name!r} as {said[0]}, those of data.parts.0 as {said[1]}"
                )
    return {name: kind for name, kind in kinds[0].items() if all(name in other for other in kinds)}
