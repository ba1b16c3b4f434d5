"""What a source of records is.

A source yields `(where, record)` pairs; `where` names the record in messages ("notes.jsonl line 7"), `record` is a dict
with "text", with "image" (or "features") and "label", or with "image" and "text". What it cannot read it reports to a
`BadRecords`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_jax.data.base import BadRecords, Compared

Records = Iterator[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Base of every source. Splits are called "train" and "validation"."""

    compared: ClassVar[dict[str, Compared]] = {}  # these two as `DataConfig` has them
    cut: ClassVar[str] = ""

    def fingerprint(self, split: str, root: Path) -> str:
        """Changes whenever the records of `split` do; `root` is the cache."""
        raise NotImplementedError(f"{type(self).__name__} does not define fingerprint()")

    def records(self, split: str, root: Path, bad: BadRecords) -> Records:
        raise NotImplementedError(f"{type(self).__name__} does not define records()")

    def encoded(self, split: str, root: Path, bad: BadRecords) -> Records:
        """As `records`, but a picture is its file, a path or bytes, where the source has that: nothing is decoded."""
        return self.records(split, root, bad)

    def shards(self, split: str, root: Path, bad: BadRecords) -> list["Source"]:
        """Sources whose records, one after the other, are this one's: as many as several processes can read at once."""
        return [self]

    def has(self, split: str, root: Path) -> bool:
        """Whether it has this split at all."""
        return True

    def reads(self, root: Path) -> dict[str, list[Path] | str]:
        """As `DataConfig.reads`, by the source's own fields or splits."""
        return {split: self.made_from(split, root) for split in ("train", "validation") if self.has(split, root)}

    def made_from(self, split: str, root: Path) -> list[Path] | str:
        """The files of a split, or a text that changes when its records do."""
        return self.fingerprint(split, root)

    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; empty where they have none."""
        return ()

    def short_name(self) -> str:
        """A short name for folders and tables."""
        return type(self).__name__.lower()
