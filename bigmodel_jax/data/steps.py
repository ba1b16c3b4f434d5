"""A source whose records pass through a user's functions when they are prepared."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from bigmodel_jax.core import user_code
from bigmodel_jax.core.user_code import FunctionName
from bigmodel_jax.data import cache
from bigmodel_jax.data.sources.source import Source

OPTION = "data.source.steps"
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Steps(Source):
    """The records of `source` after `steps`.

    A step is a user's function that maps a record to a list of records, which may be empty. It is
    named like the function of `Arrays`. The content of the file that defines it is part of the
    cache key.
    """

    source: Source
    "where the records come from"
    steps: tuple[FunctionName, ...] = ()
    "the functions or their names, in order"

    def __post_init__(self):
        # config.json can hold only names of functions. A frozen dataclass forbids plain assignment.
        object.__setattr__(self, "steps", tuple(user_code.name_of(OPTION, step) for step in self.steps))

    def short_name(self):
        return self.source.short_name()

    def labels(self):
        return self.source.labels()

    def has(self, split, root):
        return self.source.has(split, root)

    def reads(self, root):
        return {f"source.{name}": what for name, what in self.source.reads(root).items()}

    def made_from(self, split, root):
        return self.source.made_from(split, root)

    def fingerprint(self, split, root):
        steps = [(step.__qualname__, _code(step)) for step in self._functions()]
        return cache.key(self.source.fingerprint(split, root), steps)

    def shards(self, split, root, bad):
        return [dataclasses.replace(self, source=shard) for shard in self.source.shards(split, root, bad)]

    def records(self, split, root, bad):
        functions = self._functions()
        for where, record in self.source.records(split, root, bad):
            try:
                found = _after(functions, [record])
            except Exception as error:  # a user's step may raise anything
                bad.skip(where, f"{OPTION}: {user_code.described(error)}")
                continue
            yield from ((where, made) for made in found)

    def _functions(self) -> list[Callable[[Record], Iterable[Record]]]:
        return [user_code.find(OPTION, name) for name in self.steps]


def _after(functions: list[Callable], records: list[Record]) -> list[Record]:
    """Apply the functions one after another."""
    for function in functions:
        records = [made for record in records for made in function(record)]
        if wrong := [made for made in records if not isinstance(made, dict)]:
            raise TypeError(
                f"{function.__qualname__} gave {wrong[0]!r:.40}; it must return a list of records, or yield them"
            )
    return records


def _code(function: Callable) -> str:
    file = getattr(inspect.getmodule(function), "__file__", None)
    return cache.file_digest(file) if file else ""
