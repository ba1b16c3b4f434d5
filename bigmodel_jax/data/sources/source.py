"""The base class of record sources.

A source yields `(where, record)` pairs. `where` names the record in messages, such as "notes.jsonl
line 7". `record` is a dict with "text", with "image" (or "features") and "label", or with "image"
and "text". A record that the source cannot read is reported to a `BadRecords`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_jax.data.base import BadRecords, Compared

Records = Iterator[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The base class of every source. Its splits are called "train" and "validation"."""

    compared: ClassVar[dict[str, Compared]] = {}  # `compared` and `cut` mean the same as in `DataConfig`
    cut: ClassVar[str] = ""

    def fingerprint(self, split: str, root: Path) -> str:
        """Return a hash that changes whenever the split's records do. `root` is the cache."""
        raise NotImplementedError(f"{type(self).__name__} does not define fingerprint()")

    def records(self, split: str, root: Path, bad: BadRecords) -> Records:
        """Yield (where, record) of a split. Unreadable records are reported to `bad`."""
        raise NotImplementedError(f"{type(self).__name__} does not define records()")

    def encoded(self, split: str, root: Path, bad: BadRecords) -> Records:
        """Yield records like `records`, but keep images as undecoded files where possible."""
        return self.records(split, root, bad)

    def shards(self, split: str, root: Path, bad: BadRecords) -> list["Source"]:
        """Return sources that together, in order, have the records of this one.

        Several processes can read them in parallel.
        """
        return [self]

    def has(self, split: str, root: Path) -> bool:
        """Tell whether the source has this split."""
        return True

    def reads(self, root: Path) -> dict[str, list[Path] | str]:
        """Return what the records are made from, by field or split. See `DataConfig.reads`."""
        return {split: self.made_from(split, root) for split in ("train", "validation") if self.has(split, root)}

    def made_from(self, split: str, root: Path) -> list[Path] | str:
        """Return the files of a split, or a text that changes when its records do."""
        return self.fingerprint(split, root)

    def labels(self) -> tuple[str, ...]:
        """Return the class names in the order of their numbers.

        The result is empty where there are none.
        """
        return ()

    def short_name(self) -> str:
        """Return a short name for folders and tables."""
        return type(self).__name__.lower()
