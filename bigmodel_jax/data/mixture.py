"""A mixture of data sets: weights decide from which data set each training example comes.

The weights may change at given steps. Each part's examples are taken in that part's own shuffled
order, once per epoch, whatever the weights are. Evaluation reads every row of every part once. The
only state is the number of the next batch.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import ClassVar

from bigmodel_jax.core import ranges
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.mixed_rows import MixedRows
from bigmodel_jax.data.mixture_order import SLOTS, Stage, too_low
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

NAME = re.compile(r"[\w.-]{1,40}")  # a part's name is used in the names of metrics and files


@dataclasses.dataclass(frozen=True)
class MixtureData(DataConfig):
    """Rows of several data configs, mixed in training by weights.

    All parts must give the same arrays. Text parts must share one tokenizer (`tokenizer.path`, or
    bytes). Evaluation arrays that only some parts have are left out.
    """

    endless = True
    compared: ClassVar = DataConfig.compared | {"stages": "training", "max_epochs": "training", "names": "place"}

    parts: tuple[DataConfig, ...] = ()
    "the data configs that are mixed"
    stages: tuple[Stage, ...] = ()
    "weights of the parts, and the step from which they hold; the first stage begins at step 0"
    names: tuple[str, ...] = ()
    "names of the parts in metrics and on the page; empty: their numbers"
    max_epochs: tuple[NonNegative, ...] = ()
    """epochs after which a part gives no more examples and the others take its share; 0: no limit;
    empty: no limits"""

    def __post_init__(self):
        ranges.check(self, "data.")  # before the checks of sums, which an infinite weight fails with a wrong reason
        steps = [stage.step for stage in self.stages]
        if len(self.parts) < 2:
            raise ValueError(f"data.parts: {len(self.parts)} are given; a mixture has two or more")
        if steps[:1] != [0] or steps != sorted(set(steps)):
            raise ValueError(f"data.stages: steps {steps}; they must begin with 0 and rise")
        for i, stage in enumerate(self.stages):
            self._check_stage(f"data.stages.{i}", stage)
        for name in ("names", "max_epochs"):
            if len(given := getattr(self, name)) not in (0, len(self.parts)):
                raise ValueError(
                    f"data.{name} = {given!r}; it must have {len(self.parts)} entries, one a part, or none"
                )
        for name in self.names:
            if not NAME.fullmatch(name) or self.names.count(name) > 1:
                raise ValueError(
                    f"data.names = {self.names!r}: {name!r}; each name must differ, "
                    "and have up to 40 letters, digits, _, . or -"
                )

    def _check_stage(self, name: str, stage: Stage) -> None:
        if not stage.weights:
            return
        if stage.temperature != 1:
            raise ValueError(
                f"{name}.temperature = {stage.temperature:g}: the weights are given; leave them out to draw by the parts' sizes"
            )
        if len(stage.weights) != len(self.parts) or not any(stage.weights):
            raise ValueError(f"{name}.weights = {stage.weights!r}; it must have {len(self.parts)} numbers, not all 0")
        if low := too_low(stage.weights):
            raise ValueError(f"{name}.weights: {low[0]} is less than 1/{SLOTS} of all; give more, or 0")

    def open(self, split: str) -> MixedRows:
        self.check_tokenizers()
        rows = []
        for i, part in enumerate(self._parts()):
            with _named(i):
                rows.append(part.open(split))
                if getattr(rows[-1], "mixes", ()):
                    raise ValueError("data.mix: the examples of a mixture's parts are not mixed; allowed: ()")
        names = self.names or tuple(map(str, range(len(rows))))
        return MixedRows(rows, names, self.stages, self.max_epochs, _tokens(self.row()))

    def row(self) -> dict[str, Field]:
        first, *others = (part.row() for part in self._parts())
        return {name: field for name, field in first.items() if all(name in row for row in others)}

    def requirements(self) -> dict:
        needs = {}
        for i, part in enumerate(self._parts()):
            with _named(i):
                own = part.requirements()
            for name, value in own.items():
                # Numbers are lower bounds, so the largest counts. Any other value must be the same
                # in all parts.
                number = isinstance(value, int) and not isinstance(value, bool)
                if not number and needs.get(name, value) != value:
                    raise ValueError(
                        f"data.parts.{i} needs model.{name} = {value!r}; the parts before it need {needs[name]!r}"
                    )
                needs[name] = max(needs.get(name, value), value) if number else value
        return needs

    def save_artifacts(self, folder) -> None:
        for part in reversed(self._parts()):  # the first part's files win
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

    def with_places(self, options: list[str]) -> "MixtureData":
        stages = list(self.stages)
        while given := {name for name in options if name.startswith(f"data.stages.{len(stages)}.")}:
            own = {name.rpartition(".")[2] for name in given}
            if "step" not in own or not own & {"weights", "temperature"}:
                raise ValueError(
                    f"--{min(given)}: a new stage needs --data.stages.{len(stages)}.step, and weights or a temperature"
                )
            weights = stages[-1].weights or (1.0,) * len(self.parts)  # a placeholder, which the given option replaces
            stages.append(Stage(stages[-1].step + 1, weights if "weights" in own else ()))
        return dataclasses.replace(self, stages=tuple(stages))

    def ahead(self, before: DataConfig, step: int) -> tuple[str, ...]:
        known = len(before.stages) if isinstance(before, MixtureData) else len(self.stages)
        for i, stage in enumerate(self.stages[known:], known):
            if stage.step < step:
                raise ValueError(
                    f"data.stages.{i}.step = {stage.step}: the run is at step {step}; a stage that is appended begins there "
                    "or later"
                )
        return tuple(f"data.stages.{i}" for i in range(known, len(self.stages)))

    def _parts(self) -> list[DataConfig]:
        return [dataclasses.replace(part, cache_dir=part.cache_dir or self.cache_dir) for part in self.parts]

    def check_tokenizers(self) -> None:
        # One model embeds all parts, so an id must mean the same token in each of them.
        known = [tokenizer and tokenizer.model.to_str() for tokenizer in (p.open_tokenizer() for p in self._parts())]
        for i, text in enumerate(known):
            if text != known[0]:
                raise ValueError(
                    f"data.parts.{i}: its tokenizer is not that of data.parts.0; give all parts one tokenizer.json "
                    "(`data CONFIG --train-tokenizer FILE` writes one)"
                )


@contextlib.contextmanager
def _named(i: int) -> Iterator[None]:
    """Name the part in errors, because a part's own messages say `data`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.parts.{i}: {error}") from error


def _tokens(row: dict[str, Field]) -> int:
    """Return the tokens of a row for a run's throughput; 0 where a step counts examples."""
    if "seq" not in row["weights"].axes if "weights" in row else True:
        return 0
    shape = row.get("tokens", row["weights"]).shape
    return math.prod(shape) if shape else 0
