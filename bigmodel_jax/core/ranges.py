"""Ranges of config fields, declared with the field: `lr: NonNegative = 3e-4`.

`check` enforces these ranges for command lines, Python files and JSON. A float without a range must
be finite.
"""

import dataclasses
import functools
import math
import types
import typing
from typing import Annotated, Any, Literal

from bigmodel_jax.core.spelling import nearest

# Config files may be JSON, and a request may come from any language: messages name no Python type.
WORDS = {dict: "an object", str: "a text", bool: "true or false", float: "a number", int: "a whole number"}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`. `text` completes the message "it must be ..."."""

    text: str
    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # whether `least` itself is outside the range
    below: bool = False  # whether `most` itself is outside the range

    def __repr__(self) -> str:  # help() of a config class prints it for every field
        return self.text

    def holds(self, value: float) -> bool:
        high_enough = value > self.least if self.above else value >= self.least
        return high_enough and (value < self.most if self.below else value <= self.most)


Count = Annotated[int, Range("1 or more", 1)]
Classes = Annotated[int, Range("2 or more", 2)]
CountOrZero = Annotated[int, Range("0 or more", 0)]
CountOrAll = Annotated[int, Range("1 or more, or -1 for all remaining devices", -1)]  # sharding.factor refuses 0
Depth = Annotated[
    int, Range("1 or more and at most 10000", 1, 10_000)
]  # number of layers; some code builds a list with one entry per layer
Blocks = Annotated[int, Range("1 or more and at most 500", 1, 500)]  # blocks that are unrolled in the compiled program
Window = Annotated[int, Range("8 or more and at most 10000", 8, 10_000)]  # steps; sorted in every step
Seed = Annotated[int, Range("0 or more and below 2**32", 0, 2**32, below=True)]  # a JAX key takes 32 bits
Positive = Annotated[float, Range("above 0", 0, above=True)]
NonNegative = Annotated[float, Range("0 or more", 0)]
AtLeastOne = Annotated[float, Range("1 or more", 1)]
Share = Annotated[float, Range("0 or more and at most 1", 0, 1)]
ShareBelowOne = Annotated[float, Range("0 or more and below 1", 0, 1, below=True)]
ShareAboveZero = Annotated[float, Range("above 0 and at most 1", 0, 1, above=True)]
ProperShare = Annotated[float, Range("above 0 and below 1", 0, 1, above=True, below=True)]


def check(config: Any, prefix: str = "") -> None:
    """Raises ValueError, one line, for the first field with a wrong type, choice or range."""
    declared = hints(type(config))
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), declared[field.name]
        if unnamed(hint):  # messages leave out the part's name, as the command line does
            if value is not None:
                check(value, prefix)
        else:
            check_value(f"{prefix}{field.name}", value, hint)


def unnamed(hint: Any) -> bool:
    """Whether the command line leaves out this part's name (tyro.conf.arg(name=""))."""
    return any(getattr(m, "name", None) == "" for m in getattr(hint, "__metadata__", ()))


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The declared type of each field of a dataclass, with its range."""
    return typing.get_type_hints(cls, include_extras=True)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Like `check`, for one value that was declared as `hint`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _check_union(name, value, typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        _check_tuple(name, value, typing.get_args(hint))
    else:
        _check_scalar(name, value, hint)
    if dataclasses.is_dataclass(value):
        check(value, f"{name}.")


def _check_union(name: str, value: Any, hints: tuple) -> None:
    """Raises the last alternative's ValueError if no alternative of the union accepts the value."""
    refused = None
    for hint in hints:
        if hint is type(None):
            if value is None:
                return
            continue
        try:
            # The first alternative that accepts the value decides.
            return check_value(name, value, hint)
        except ValueError as error:
            refused = error
    raise refused


def _check_tuple(name: str, value: Any, hints: tuple) -> None:
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{name} = {value!r} is of type {type(value).__name__}; it must be a list")
    if not hints:
        return
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    if len(value) != len(hints):
        raise ValueError(f"{name} = {value!r}; it must have {len(hints)} values")
    for i, (item, hint) in enumerate(zip(value, hints, strict=True)):
        check_value(f"{name}.{i}" if dataclasses.is_dataclass(item) else name, item, hint)  # as its options are named


def _check_scalar(name: str, value: Any, hint: Any) -> None:
    (kind, *ranges) = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if typing.get_origin(kind) is Literal:
        return _check_choice(name, value, typing.get_args(kind))
    if isinstance(kind, type):
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            wanted = WORDS.get(kind, kind.__name__)
            raise ValueError(f"{name} = {value!r} is of type {type(value).__name__}; it must be {wanted}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} = {value}; it must be a finite number")
    for allowed in ranges:
        if isinstance(allowed, Range) and not allowed.holds(value):
            raise ValueError(f"{name} = {value}; it must be {allowed.text}")


def _check_choice(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} = {value!r}; allowed: {listed}{nearest(str(value), map(str, allowed))}")
