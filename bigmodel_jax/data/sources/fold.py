"""Holds out one of k folds of a source's training records as the validation split."""

import collections
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core.ranges import Classes, CountOrZero, Seed
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, lacks
from bigmodel_jax.data.holdout import folds
from bigmodel_jax.data.sources.source import Records, Source

FORMAT = 1  # raise it when the same records lie in other folds
CONTENT = ("image", "features", "text")  # the first of these identifies a record; without one, all its fields do


@dataclasses.dataclass(frozen=True)
class HeldOutFold(Source):
    """The training records of `source` without fold `fold`. That fold is the validation split.

    The source's own validation split is not read. Other splits, such as test, stay as they are.
    Folds depend on the records' content, so equal records lie in the same fold wherever they stand.
    """

    cut: ClassVar = "k"

    source: Source
    "the source whose training records are divided"
    k: Classes = 5
    "the number of folds"
    fold: CountOrZero = 0
    "the fold that is held out, 0 .. k - 1"
    stratify: str = ""
    "the field with a record's label, whose shares should be alike in all folds; empty: none"
    together: str = ""
    """a field such as a patient or an author: records with equal values share a fold; empty: equal
    records do"""
    seed: Seed = 0
    "another seed gives other folds"

    def __post_init__(self):
        if self.fold >= self.k:
            raise ValueError(f"data.source.fold = {self.fold}; it must be below data.source.k = {self.k}")

    def short_name(self):
        return f"{self.source.short_name()}-fold{self.fold}of{self.k}"

    def labels(self):
        return self.source.labels()

    def has(self, split, root):
        return split in ("train", "validation") or self.source.has(split, root)

    def made_from(self, split, root):
        return self.source.made_from(self._read(split), root)

    def reads(self, root):
        return {"source.train": self.made_from("train", root)}

    def fingerprint(self, split, root):
        inner = self.source.fingerprint(self._read(split), root)
        if split not in ("train", "validation"):
            return inner
        # The path is part of the key, because sources may store the paths of images.
        place = str(Path(str(getattr(self.source, "train", ""))).absolute())
        return cache.key(inner, place, *self._how(), self.fold, split)

    def records(self, split, root, bad):
        return self._part(split, root, bad, "records")

    def encoded(self, split, root, bad):
        return self._part(split, root, bad, "encoded")

    def counts(self, root: Path, max_bad_records: int = 0, form: str = "records") -> dict[str, Any]:
        """Return the sizes of the folds.

        {"records": [records per fold], "labels": {label: [its records per fold]}}. `form` is the
        method of the source that reads the records.
        """
        return json.loads((self._folder(root, max_bad_records, form) / "counts.json").read_text())

    def _read(self, split: str) -> str:
        return "train" if split == "validation" else split

    def _how(self) -> tuple:
        return self.k, self.stratify, self.together, self.seed

    def _part(self, split: str, root: Path, bad: BadRecords, form: str) -> Records:
        records = getattr(self.source, form)
        if split not in ("train", "validation"):
            yield from records(split, root, bad)
            return
        places = np.load(self._folder(root, bad.limit, form) / "folds.npy")
        # `strict` raises where the number of records has changed since the folds were made.
        for found, place in zip(records("train", root, bad), places, strict=True):
            if (place == self.fold) == (split == "validation"):
                yield found

    def _folder(self, root: Path, max_bad_records: int, form: str) -> Path:
        """Return the cache folder with every record's fold. The source is read once to make it."""
        # The limit and the form decide which records are skipped, and so how records are numbered.
        name = cache.key(self.source.fingerprint("train", root), self._how(), max_bad_records, form)
        return cache.build(
            root / f"folds-{FORMAT}" / name, lambda folder: self._write(folder, root, max_bad_records, form)
        )

    def _write(self, folder: Path, root: Path, max_bad_records: int, form: str) -> None:
        units, labels = [], []
        for where, record in getattr(self.source, form)("train", root, BadRecords(max_bad_records)):
            for option, name in (("stratify", self.stratify), ("together", self.together)):
                if name and (missing := lacks(record, name)):
                    raise ValueError(f"data.source.{option} = {name!r}: {where}: {missing}")
            units.append(_unit(record, self.together))
            labels.append(_text(record[self.stratify]) if self.stratify else "")
        places = folds(units, self.k, labels if self.stratify else None, self.seed)
        np.save(folder / "folds.npy", np.array(places, np.int32))
        (folder / "counts.json").write_text(json.dumps(_counts(places, labels if self.stratify else [], self.k)))


def _unit(record: dict[str, Any], together: str) -> bytes:
    """Return the bytes that identify the unit of a record, which no fold boundary divides."""
    if together:
        return cache.content(record[together])
    names = [name for name in CONTENT if name in record][:1] or sorted(record)
    return b"".join(f"{name} ".encode() + _content(record[name]) for name in names)


def _content(value: Any) -> bytes:
    return cache.file_digest(value).encode() if isinstance(value, os.PathLike) else cache.content(value)


def _text(label: Any) -> str:
    return label.strip() if isinstance(label, str) else json.dumps(np.asarray(label).tolist())


def _counts(places: list[int], labels: list[str], k: int) -> dict[str, Any]:
    of_label = collections.defaultdict(lambda: [0] * k)
    # `labels` is empty where no field of labels is named.
    for label, place in zip(labels, places, strict=False):
        of_label[label][place] += 1
    return {"records": np.bincount(places, minlength=k).tolist(), "labels": dict(sorted(of_label.items()))}
