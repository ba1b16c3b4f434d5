"""Checks of which sizes in a model's config fit each other and the mesh.

A config declares its checks beside its fields as `SIZES`. `check` runs them. The range of a single
field is declared in core/ranges.py. A model may bring checks of its own: any object with
`wrong(cfg, prefix, parallel)`, which returns a message, or "" if nothing is wrong.
"""

import dataclasses
from typing import Any, NamedTuple

from bigmodel_jax.core import ranges
from bigmodel_jax.core.sharding import ParallelConfig, uncut


class Cut(NamedTuple):
    """The number of devices along a logical axis divides `size`, one number or a tuple.

    pad: the name of a field. The size is first padded to a multiple of it.
    """

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
    """`size` is a multiple of the number `of`; why: the reason, for the message."""

    size: str
    of: int
    why: str

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        size = getattr(cfg, self.size)
        return f"{prefix}{self.size} = {size}; it must be a multiple of {self.of}: {self.why}" if size % self.of else ""


class AtMost(NamedTuple):
    """The field `size` is at most the field `most`; if `below` is True, it is smaller."""

    size: str
    most: str
    below: bool = False

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        size, most = getattr(cfg, self.size), getattr(cfg, self.most)
        limit = "below" if self.below else "at most"
        text = f"{prefix}{self.size} = {size}; it must be {limit} {prefix}{self.most} = {most}"
        return text if size > most - self.below else ""


class SameLength(NamedTuple):
    """Two tuples have the same number of entries."""

    one: str
    other: str

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        one, other = getattr(cfg, self.one), getattr(cfg, self.other)
        text = (
            f"{prefix}{self.one} = {one} and {prefix}{self.other} = {other} differ in length; give one number a stage"
        )
        return text if len(one) != len(other) else ""


def padded(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def check(config: Any, parallel: ParallelConfig, prefix: str = "model.") -> None:
    """Raises ValueError, one line, for the first invalid number of a config or its parts."""
    ranges.check(config, prefix)  # first, because the checks below divide by these numbers
    _check(config, parallel, prefix)


def _check(config: Any, parallel: ParallelConfig, prefix: str) -> None:
    for fact in getattr(config, "SIZES", ()):
        if wrong := fact.wrong(config, prefix, parallel):
            raise ValueError(wrong)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check(value, parallel, f"{prefix}{field.name}.")
