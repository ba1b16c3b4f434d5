"""Read the search space of a sweep from `SPACE` in a config file.

It maps the dotted names of fields to ranges or choices:

    SPACE = {"optim.lr": log(1e-4, 1e-2), "model.hidden_dims": choice((64,), (128, 128))}
"""

import dataclasses
import itertools
import math
import numbers
from pathlib import Path
from typing import Any

from bigmodel_jax.config import Config, field_of, replaced
from bigmodel_jax.core import ranges, user_code

NAME = "SPACE"


@dataclasses.dataclass(frozen=True)
class Floats:
    """A number from `low` to `high`, drawn uniformly, or log-uniformly if `log` is True."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple:
        """The smallest and the largest value."""
        return self.low, self.high


@dataclasses.dataclass(frozen=True)
class Integers:
    """A whole number: low, low + step, ..., at most `high`."""

    low: int
    high: int
    step: int = 1

    @property
    def ends(self) -> tuple:
        """The smallest and the largest value."""
        return self.low, self.high

    @property
    def values(self) -> tuple:
        """All values."""
        return tuple(range(self.low, self.high + 1, self.step))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of `values`, which may be anything that the field may hold, even parts of a config."""

    values: tuple

    @property
    def ends(self) -> tuple:
        """All values."""
        return self.values

    @property
    def labels(self) -> tuple:
        """The form in which a study stores each value: a scalar as it is, else its text."""
        plain = (bool, int, float, str, type(None))
        return tuple(value if isinstance(value, plain) else _written(value) for value in self.values)


def _written(value: Any) -> str:
    """A value as a user would write it. A part of a config shows only the fields that differ from
    their defaults."""
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    inside = (f"{f.name}={_written(x)}" for f, x in fields if repr(x) != repr(f.default))
    return f"{type(value).__name__}({', '.join(inside)})"


Dimension = Floats | Integers | Choice
Space = dict[str, Dimension]


def uniform(low: float, high: float) -> Floats:
    """Any number from `low` to `high`, all equally likely."""
    return Floats(*_ordered("uniform", low, high))


def log(low: float, high: float) -> Floats:
    """Any number from `low` (above 0) to `high`, uniform in its logarithm."""
    found = Floats(*_ordered("log", low, high), log=True)
    if not low > 0:
        raise ValueError(f"log({low}, {high}): the lower end must be above 0")
    return found


def integers(low: int, high: int, step: int = 1) -> Integers:
    """Any of low, low + step, ..., at most `high`."""
    if step < 1:
        raise ValueError(f"integers({low}, {high}, {step}): the step must be 1 or more")
    _ordered("integers", low, high)
    # Optuna warns if `high` is not reached by whole steps.
    return Integers(low, high - (high - low) % step, step)


def choice(*values: Any) -> Choice:
    """One of the values."""
    # repr tells True from 1, and works for values that cannot be hashed.
    if len({repr(value) for value in values}) < max(len(values), 1):
        raise ValueError(f"choice{values}: it must have at least one value, and none twice")
    return Choice(values)


def _ordered(name: str, low: Any, high: Any) -> tuple[Any, Any]:
    if not (all(isinstance(end, numbers.Real) and math.isfinite(end) for end in (low, high)) and low < high):
        raise ValueError(f"{name}({low!r}, {high!r}): the lower end must be below the upper one, and both finite")
    return low, high


# ------------------------------------------------------------ the space of a config file


def read(path: Path, config: Config) -> Space:
    """The search space of a config file.

    Raises ValueError if a field cannot hold an end of its range or one of its choices.
    """
    if path.suffix != ".py":
        raise ValueError(f"sweep: {str(path)!r} is not a Python file; the search space {NAME} must be in one")
    space = getattr(user_code.import_file(path), NAME, None)
    if not space or not isinstance(space, dict):
        wrong = "has no" if space is None else "has an empty" if space == {} else f"has a {type(space).__name__} as"
        raise ValueError(
            f"sweep: {str(path)!r} {wrong} {NAME}; it must hold fields and what they may be, as in "
            f'{NAME} = {{"optim.lr": log(1e-4, 1e-2)}}'
        )
    for name, dimension in space.items():
        try:
            check(config, name, dimension)
        except ValueError as error:
            raise ValueError(f"{NAME} of {str(path)!r}: {error}") from error
    return space


def check(config: Config, name: str, dimension: Any) -> None:
    """Raise ValueError if the field does not exist or cannot hold an end or a choice."""
    field_of(config, str(name))
    if not isinstance(dimension, Dimension):
        raise ValueError(f"{name}: {dimension!r} is none of uniform, log, integers, choice")
    # The allowed values of a field are an interval, so the ends of a range suffice.
    for value in dimension.ends:
        ranges.check(replaced(config, name, value))


def configured(config: Config, values: dict[str, Any]) -> Config:
    """The config of a trial."""
    for name, value in values.items():
        config = replaced(config, name, value)
    ranges.check(config)
    return config


def floats(space: Space) -> tuple[str, ...]:
    """The fields whose values are all floats.

    A compiled step can take these fields as inputs, so one program serves all their values.
    """
    return tuple(
        name
        for name, dimension in space.items()
        if isinstance(dimension, Floats)
        or (isinstance(dimension, Choice) and all(isinstance(value, float) for value in dimension.values))
    )


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination as {field: label}. Raises ValueError for a continuous range."""
    for name, dimension in space.items():
        if isinstance(dimension, Floats):
            raise ValueError(
                f"--sampler grid: {NAME}[{name!r}] is a range of numbers; a grid takes choice(...) or integers(...)"
            )
    labels = [dimension.labels if isinstance(dimension, Choice) else dimension.values for dimension in space.values()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*labels)]


def text(dimension: Dimension) -> str:
    """A dimension as it is written in SPACE."""
    match dimension:
        case Floats(low, high, log):
            return f"{'log' if log else 'uniform'}({low!r}, {high!r})"
        case Integers(low, high, step):
            return f"integers({low}, {high}{f', {step}' if step > 1 else ''})"
        case Choice(values):
            return f"choice({', '.join(map(_written, values))})"
