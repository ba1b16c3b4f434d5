"""Which sizes of a model's config fit each other and the mesh: declared beside its fields as `SIZES`, checked in one place.

What one field may hold alone is its range (core/ranges.py). A model may bring facts of its own: whatever has `wrong`.
"""

import dataclasses
from typing import Any, NamedTuple

from bigmodel_jax.core import ranges
from bigmodel_jax.core.sharding import ParallelConfig, uncut


class Cut(NamedTuple):
    """The devices on which a logical axis lies divide `size`, one number or several; pad: a field, to whose multiples it is
    padded first."""

    size: str
    axis: str
    pad: str = ""

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        value, name, more = getattr(cfg, self.size), f"{prefix}{self.size}", ""
        if self.pad:
            multiple = getattr(cfg, self.pad)
            value, more = padded(value, multiple), f"--{prefix}{self.pad} {max(parallel.tensor, 1)} pads it, or "
            name += f" padded to multiples of {prefix}{self.pad} = {multiple}" if multiple > 1 else ""
        for size in value if isinstance(value, tuple) else (value,):
            if product := uncut(parallel, size, self.axis):
                whole = f"--parallel.rules.{self.axis} None leaves it whole on every device"
                return f"{name} = {size} is not divisible by {product}: {more}{whole}"
        return ""


class Divides(NamedTuple):
    """`size` divides `whole`."""

    size: str
    whole: str

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        size, whole = getattr(cfg, self.size), getattr(cfg, self.whole)
        text = f"{prefix}{self.size} = {size} does not divide {prefix}{self.whole} = {whole}; allowed: its divisors"
        return text if whole % size else ""


class Multiple(NamedTuple):
    """`size` is a multiple of a number."""

    size: str
    of: int
    why: str

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        size = getattr(cfg, self.size)
        return f"{prefix}{self.size} = {size}; it must be a multiple of {self.of}: {self.why}" if size % self.of else ""


class AtMost(NamedTuple):
    """`size` is no larger than `most`, and not as large either where it must be below."""

    size: str
    most: str
    below: bool = False

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        size, most = getattr(cfg, self.size), getattr(cfg, self.most)
        limit = "below" if self.below else "at most"
        text = f"{prefix}{self.size} = {size}; it must be {limit} {prefix}{self.most} = {most}"
        return text if size > most - self.below else ""


class SameLength(NamedTuple):
    """Two tuples have an entry for each stage."""

    one: str
    other: str

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        one, other = getattr(cfg, self.one), getattr(cfg, self.other)
        text = (
            f"{prefix}{self.one} = {one} and {prefix}{self.other} = {other} differ in length; give one number a stage"
        )
        return text if len(one) != len(other) else ""


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def check(config: Any, parallel: ParallelConfig, prefix: str = "model.") -> None:
    """ValueError, one line, for the first number of a model's config, or of a part of it, that cannot be."""
    ranges.check(config, prefix)  # what follows divides by them
    _check(config, parallel, prefix)


def _check(config: Any, parallel: ParallelConfig, prefix: str) -> None:
    for fact in getattr(config, "SIZES", ()):
        if wrong := fact.wrong(config, prefix, parallel):
            raise ValueError(wrong)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check(value, parallel, f"{prefix}{field.name}.")
