"""The base classes of cleaning steps.

A step is a frozen dataclass that replaces a record with zero, one or several records.
"""

import dataclasses
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

from bigmodel_jax.core import user_code
from bigmodel_jax.core.user_code import FunctionName
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import lacks

Record = dict[str, Any]
Cleaned = tuple[list[Record], str]


class StepError(ValueError):
    """Raised by a step that can clean no record at all, such as one that cannot read its file."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The base class of steps. A step sees one record at a time and keeps no state."""

    packages: ClassVar[tuple[str, ...]] = ()
    "packages whose versions influence the result of the step"

    def clean(self, record: Record) -> Cleaned:
        """Return (the records in place of `record`, ""), or ([], "rule: figures") for a dropped
        record.

        A data card counts dropped records by the text before the colon. A record for which the step
        raises an exception is a bad record; a `StepError` ends the work.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define clean()")

    def __call__(self, record: Record) -> Iterable[Record]:
        return self.clean(record)[0]

    def reads(self) -> list[Path]:
        """Return the files, besides the record, on which the result depends."""
        return []

    def facts(self) -> dict[str, Any]:
        """Return the step's fields as a data card shows them."""
        return dataclasses.asdict(self)

    def code(self) -> str:
        """Return a digest of the user's own code of this step; "" for a step of this package."""
        return user_code_digest(type(self))


@dataclasses.dataclass(frozen=True)
class Filter(Step):
    """A step that either keeps a record unchanged or drops it."""

    def why(self, record: Record) -> str:
        """Return "rule: figures" of the first rule that drops the record, or "" if it stays."""
        raise NotImplementedError(f"{type(self).__name__} does not define why()")

    def clean(self, record):
        reason = self.why(record)
        return ([], reason) if reason else ([record], "")


class Index(Protocol):
    """What a `Shared` step remembers of earlier records."""

    def ask(self, key: bytes) -> str:
        """Return why the record with this key is dropped, or "" for a record that stays.

        The key of a record that stays is remembered.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Shared(Step):
    """A step that compares a record with earlier ones.

    `key` may run in any process. The `index` lives in one process and sees the keys in the order of
    the records.
    """

    def key(self, record: Record) -> bytes:
        """Return the bytes by which the index compares this record with others."""
        raise NotImplementedError(f"{type(self).__name__} does not define key()")

    def group(self, key: bytes) -> bytes:
        """Return the group of a key. Only keys of one group are compared with each other.

        Different groups may be judged in different processes. By default all keys are one group.
        """
        return b""

    def index(self) -> Index:
        """Return an empty index. Its state depends only on the keys that it let stay, in order."""
        raise NotImplementedError(f"{type(self).__name__} does not define index()")

    def clean(self, record):
        raise ValueError(
            f"{type(self).__name__} compares records, so it must be a step of a Corpus, which `prepare` writes"
        )


@dataclasses.dataclass(frozen=True)
class Function(Step):
    """Applies a user's function that maps a record to a list of records.

    The function stands in the config file, where the field is the function or its name, or in a
    module.
    """

    function: FunctionName = ""
    "the function or its name"

    def __post_init__(self):
        # config.json can hold only a function's name; a frozen dataclass forbids plain assignment.
        object.__setattr__(self, "function", user_code.name_of("data.source.steps", self.function))

    def clean(self, record):
        found = list(user_code.find("data.source.steps", self.function)(record))
        if wrong := [made for made in found if not isinstance(made, dict)]:
            raise TypeError(f"{self.function} gave {wrong[0]!r:.40}; it must return a list of records, or yield them")
        return found, "" if found else self.function.rpartition(":")[2]

    def facts(self):
        file, _, name = self.function.rpartition(":")
        # The folder is left out, so that the key stays the same when the file is moved.
        return {"function": f"{Path(file).name}:{name}"}

    def code(self):
        return user_code_digest(user_code.find("data.source.steps", self.function))


def user_code_digest(what: Any) -> str:
    """Return the digest of the file that defines a function or class; "" within this package."""
    module = importlib.import_module(what.__module__)
    file = getattr(module, "__file__", None)
    # The FORMAT of corpora shows changes of this package's own steps instead.
    return cache.file_digest(file) if file and module.__name__.partition(".")[0] != "bigmodel_jax" else ""


def text_of(record: Record, field: str) -> str:
    """Return the text in a record's field. Raises ValueError where there is no such text."""
    if reason := lacks(record, field):
        raise ValueError(reason)
    if not isinstance(record[field], str):
        raise ValueError(f"field {field!r} is {type(record[field]).__name__}, not a text")
    return record[field]


def package(name: str, step: Step) -> ModuleType:
    """Import a package of the extra `clean`. Raises a one-line ValueError where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f"{type(step).__name__} needs the package {name}: uv sync --extra clean") from None
