"""A source whose records are cleaned once by a list of steps, and stored in shards on disk."""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_jax.core import paths
from bigmodel_jax.core.ranges import Count, ShareBelowOne
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import DataConfig, inner
from bigmodel_jax.data.cleaning.step import Step
from bigmodel_jax.data.corpus import folder as folders
from bigmodel_jax.data.corpus.outcome import Splits
from bigmodel_jax.data.corpus.prepare import Job, prepare
from bigmodel_jax.data.sources import array_record_files, remembered
from bigmodel_jax.data.sources.lines import parse_json
from bigmodel_jax.data.sources.source import Source

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when the same steps give different shards
MOST_FILES = 1000  # the most files of a split that a data card lists


@dataclasses.dataclass(frozen=True)
class Shard(Source):
    """The records of one shard of a prepared corpus."""

    path: Path
    "the ArrayRecord file of the shard"

    def records(self, split, root, bad):
        for number, line in array_record_files.read(self.path):
            record, reason = parse_json(line)
            if reason:
                raise ValueError(f"{self.path} record {number} is damaged: {reason}")
            yield f"{self.path} record {number}", record


@dataclasses.dataclass(frozen=True)
class Corpus(Source):
    """The records of `source` after `steps`.

    `launch.py prepare` prepares them, or else the first reading does. Test and validation splits
    are read before the training split. So steps that compare records keep the test records and drop
    their duplicates from the training split.
    """

    compared: ClassVar = {"shard_mb": "place", "licence": "place"}
    cut: ClassVar = "validation_share"

    source: Source
    "where the raw records come from"
    steps: tuple[Step, ...] = ()
    "the cleaning steps, in order"
    validation_share: ShareBelowOne = 0.0
    """share of training records that become the validation split; 0: the source's own validation
    split"""
    split_by: str = "text"
    """the field whose hash chooses the split: records with the same value (text, author, site) stay
    together"""
    shard_mb: Count = 256
    "size of a shard in megabytes; a killed preparation loses the work on one shard"
    licence: str = ""
    "the licence that the data card states"

    def __str__(self):  # for messages: the fields of all steps would make them a page long
        return f"{self.source} after data.source.steps"

    def short_name(self):
        return self.source.short_name()

    def labels(self):
        return self.source.labels()

    def has(self, split, root):
        return split in self._inputs(root) or (split == "validation" and self.validation_share > 0)

    def made_from(self, split, root):
        # Both splits are cut from the training records.
        return self.source.made_from("train" if self.validation_share and split != "test" else split, root)

    def _inputs(self, root: Path) -> tuple[str, ...]:
        """Return the source's splits in reading order; "test" if the source has such a field."""
        splits = ("test", "validation", "train") if hasattr(self.source, "test") else ("validation", "train")
        return tuple(split for split in splits if self.source.has(split, root))

    def reads(self, root):
        found = {f"source.{name}": what for name, what in self.source.reads(root).items()}
        return found | {f"steps.{i}": files for i, step in enumerate(self.steps) if (files := step.reads())}

    def fingerprint(self, split, root):
        return cache.key(self.job(root).key, split)

    def records(self, split, root, bad):
        for shard in self.shards(split, root, bad):
            yield from shard.records(split, root, bad)

    def shards(self, split, root, bad):
        job, folder = self.job(root), self.folder(root)
        if not folder.exists():
            log.info(
                "%s is prepared by one process; launch.py prepare shows how far it is, and takes --workers", folder
            )
        prepare(job, folder, root, max_bad_records=bad.limit)
        for where, reason in folders.read_manifest(folder)["skipped"].get(split, ()):
            bad.skip(where, reason)
        return [Shard(path) for path in folders.shard_paths(folder, split)]

    def folder(self, root: Path) -> Path:
        """Return the corpus's folder in the cache."""
        return root / f"corpus-{FORMAT}" / f"{self.short_name()}-{self.job(root).key}"

    def job(self, root: Path) -> Job:
        """Return the description of the preparation. Its key changes whenever the result does."""
        inputs = self._inputs(root)
        if self.validation_share and "validation" in inputs:
            raise ValueError(
                f"data.source.validation_share = {self.validation_share:g}; it must be 0, "
                "as the source has a validation split of its own"
            )
        # The key has everything that the shards depend on, so an outdated corpus is never read.
        prints = {split: self.source.fingerprint(split, root) for split in inputs}
        steps = [_print(step) for step in self.steps]
        key = cache.key(FORMAT, prints, steps, self.validation_share, self.split_by, self.shard_mb)
        facts = {"source": self.short_name(), "licence": self.licence, "fingerprints": prints}
        facts["inputs"] = {split: found for split in inputs if (found := _files(self.source, split, root))}
        splits = Splits(self.validation_share, self.split_by)
        return Job(key, self.source, inputs, self.steps, splits, self.shard_mb * 1_000_000, facts)


def _print(step: Step) -> list:
    """Return everything, besides the records, on which a step's result depends."""
    digests = [cache.file_digest(path) for path in step.reads()]
    versions = [(name, _version(name, step)) for name in step.packages]
    return [type(step).__name__, step.facts(), step.code(), digests, versions]


def _files(source: Source, split: str, root: Path) -> list[dict[str, Any]]:
    """Return the first files of a split as a data card lists them; [] if there are no files."""
    if type(source).made_from is Source.made_from:
        return []
    found = source.made_from(split, root)
    first = found[:MOST_FILES] if isinstance(found, list) else []
    sums = remembered.digests(first, root)
    return [{"name": p.name, "bytes": paths.stat(p).size, "sha256": d} for p, d in zip(first, sums, strict=True)]


def _version(name: str, step: Step) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"data.source.steps: {type(step).__name__} needs the package {name}: uv sync --extra clean"
        ) from None


def corpora(data: DataConfig) -> Iterator[tuple[Corpus, DataConfig]]:
    """Yield every corpus in a data config, inner ones first.

    Each comes with the data config whose cache folder and limit of bad records apply to it.
    """
    for part in inner(data):
        yield from ((source, part) for source in reversed(list(_sources(part))))


def _sources(part: Any) -> Iterator[Corpus]:
    """Yield the corpora of one data config's source, without those of inner data configs."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Source):
            if isinstance(value, Corpus):
                yield value
            yield from _sources(value)
