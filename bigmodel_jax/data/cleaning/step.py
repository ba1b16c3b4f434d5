"""What a cleaning step is: a frozen dataclass that gives, in place of a record, none, one or several."""

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


@dataclasses.dataclass(frozen=True)
class Step:
    """Base of every step. A step sees one record at a time and keeps nothing between two of them."""

    packages: ClassVar[tuple[str, ...]] = ()
    "packages whose version is part of what the step gives"

    def clean(self, record: Record) -> Cleaned:
        """(the records in place of `record`, ""), or ([], "rule: figures") where the step drops it.

        A data card counts what was dropped by the text before the colon. What is raised makes the record a bad one.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define clean()")

    def __call__(self, record: Record) -> Iterable[Record]:
        return self.clean(record)[0]

    def reads(self) -> list[Path]:
        """The files, the record apart, on which the result depends."""
        return []

    def facts(self) -> dict[str, Any]:
        """The step's fields, as a data card gives them."""
        return dataclasses.asdict(self)

    def code(self) -> str:
        """Changes whenever the step's own code does, where that is the user's."""
        return user_code_digest(type(self))


@dataclasses.dataclass(frozen=True)
class Filter(Step):
    """A step that keeps a record as it is or drops it."""

    def why(self, record: Record) -> str:
        """ "rule: figures" of the first rule that drops the record; "" where it stays."""
        raise NotImplementedError(f"{type(self).__name__} does not define why()")

    def clean(self, record):
        reason = self.why(record)
        return ([], reason) if reason else ([record], "")


class Index(Protocol):
    """What a `Shared` step knows of the records before."""

    def ask(self, key: bytes) -> str:
        """Why the record of this key is dropped; "" where it stays, and its key is then known."""
        ...


@dataclasses.dataclass(frozen=True)
class Shared(Step):
    """A step that compares a record with those before it: `key` in any process, its `index` in one, in their order."""

    def key(self, record: Record) -> bytes:
        raise NotImplementedError(f"{type(self).__name__} does not define key()")

    def group(self, key: bytes) -> bytes:
        """What keys that are compared with one another have in common, so that groups may be judged apart; one of all."""
        return b""

    def index(self) -> Index:
        """An empty one. It is a function of the keys that it let stay, in their order."""
        raise NotImplementedError(f"{type(self).__name__} does not define index()")

    def clean(self, record):
        raise ValueError(f"{type(self).__name__} compares records: it is a step of a source that is prepared")


@dataclasses.dataclass(frozen=True)
class Function(Step):
    """A function of the config file (itself or its name) or of a module, from a record to the records in its place."""

    function: FunctionName = ""

    def __post_init__(self):
        object.__setattr__(self, "function", user_code.name_of("data.source.steps", self.function))

    def clean(self, record):
        found = list(user_code.find("data.source.steps", self.function)(record))
        if wrong := [made for made in found if not isinstance(made, dict)]:
            raise TypeError(f"{self.function} gave {wrong[0]!r:.40}; it must return a list of records, or yield them")
        return found, "" if found else self.function.rpartition(":")[2]

    def facts(self):
        file, _, name = self.function.rpartition(":")
        return {"function": f"{Path(file).name}:{name}"}  # which is the same function where its file has moved

    def code(self):
        return user_code_digest(user_code.find("data.source.steps", self.function))


def user_code_digest(what: Any) -> str:
    """The digest of the file in which a function or a class is defined; "" for one of this package."""
    module = importlib.import_module(what.__module__)
    file = getattr(module, "__file__", None)
    return cache.file_digest(file) if file and module.__name__.partition(".")[0] != "bigmodel_jax" else ""


def text_of(record: Record, field: str) -> str:
    """The record's text; ValueError for a record that has none of that name."""
    if reason := lacks(record, field):
        raise ValueError(reason)
    if not isinstance(record[field], str):
        raise ValueError(f"field {field!r} is {type(record[field]).__name__}, not a text")
    return record[field]


def package(name: str, step: Step) -> ModuleType:
    """An imported package of the extra `clean`; ValueError, one line, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ValueError(
            f"{type(step).__name__} needs the package {name}: uv sync --extra clean (pip install {name})"
        ) from None
