"""A source becomes shards on disk: read in order, cleaned in this process or in several, judged and written in order.

The bytes are a function of the source and the steps: neither the number of processes nor a kill in between changes them.
What was done is committed with each shard: the manifest then says how many records were read, and a second start goes on
behind them.
"""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bigmodel_jax.core import files, paths
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.cleaning.step import Record, Shared, Step
from bigmodel_jax.data.corpus import folder as folders
from bigmodel_jax.data.corpus.card import Tally, card
from bigmodel_jax.data.corpus.outcome import Asked, Bad, Gave, Kept, Splits, outcomes
from bigmodel_jax.data.corpus.workers import mapped
from bigmodel_jax.data.sources import opened
from bigmodel_jax.data.sources.source import Source

CARD = "data_card.json"
CHUNK_RECORDS, CHUNK_CHARACTERS = 512, 1 << 20  # that go to a worker process at a time


@dataclasses.dataclass(frozen=True)
class Job:
    """What is prepared: `key` changes whenever its result does; `inputs` are the source's splits in the order of reading."""

    key: str
    source: Source
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    splits: Splits
    shard_bytes: int
    facts: dict


class Progress(NamedTuple):
    """records: read so far; kept: written; bytes, total: of raw files (total 0: the source names none)."""

    records: int
    kept: int
    bytes: int
    total: int


def prepare(
    job: Job,
    folder: Path,
    root: Path,
    *,
    workers: int = 1,
    max_bad_records: int = 0,
    say: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """`folder` with the job's shards, its manifest and its data card, which appears whole; ValueError for bad input.

    Killed, or failed, it leaves `folder`.partial, from which the next call of the same job goes on.
    """
    if _is_of(job, folder):
        return folder
    with cache.lock(root / "corpus-locks" / cache.key(str(folder.absolute()))):
        if _is_of(job, folder):
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        if not _is_finished(job, partial):
            _Run(job, partial, root, max_bad_records, say).all(workers)
        for keys in partial.glob("keys-*"):
            keys.unlink()
        os.rename(partial, folder)
    return folder


def _is_of(job: Job, folder: Path) -> bool:
    """Whether the folder holds this job's result; ValueError where it holds anything else."""
    if not folder.exists():
        return False
    found = folders.read_manifest(folder)
    if found.get("key") != job.key:
        what = "another corpus" if found else "no corpus"
        raise ValueError(f"{str(folder)!r} holds {what}; delete it, or give another folder by --output")
    return True


def _is_finished(job: Job, partial: Path) -> bool:
    """Whether nothing but the folder's name is left to do."""
    found = folders.read_manifest(partial) if partial.exists() else {}
    return found.get("key") == job.key and "tally" not in found


def _delete(partial: Path, manifest: dict) -> None:
    """Deletes what another job left half done; ValueError for a folder that no job made."""
    if not manifest and any(partial.iterdir()):
        raise ValueError(f"{str(partial)!r} is needed for the work, and holds something else; move it, or delete it")
    shutil.rmtree(partial)


class _Run:
    """One process's work on a job. `manifest` is what was committed last."""

    def __init__(self, job: Job, folder: Path, root: Path, limit: int, say: Callable[[Progress], None]):
        self.job, self.folder, self.root, self.limit, self.say = job, folder, root, limit, say
        self.manifest = self._found()
        self.tally = Tally(len(job.steps), self.manifest["tally"])
        self.shards = folders.Shards(folder, self.manifest["next"])
        shared = [i for i, step in enumerate(job.steps) if isinstance(step, Shared)]
        self.keys = {i: folders.Keys(folder / f"keys-{i}", self.manifest["keys"].get(str(i), 0)) for i in shared}
        self.indexes = {i: job.steps[i].index() for i in shared}
        for i, index in self.indexes.items():
            for key in self.keys[i]:
                index.ask(key)
        self.total = sum(paths.stat(p).size for split in job.inputs for p in _files(job.source, split, root))
        self.begun, self.said = opened.position(), 0.0

    def _found(self) -> dict:
        """The manifest of the work so far; what a killed process left beside it is deleted."""
        found = folders.read_manifest(self.folder) if self.folder.exists() else {}
        if found.get("key") != self.job.key:
            if self.folder.exists():
                _delete(self.folder, found)
            self.folder.mkdir(parents=True)
            found = {"key": self.job.key, "shards": [], "done": []}
            found |= {name: {} for name in ("read", "skipped", "next", "keys", "tally")}
            folders.write_manifest(self.folder, found)
        named = {shard["name"] for shard in found["shards"]}
        for path in self.folder.iterdir():
            if path.name not in named and path.name != folders.MANIFEST and not path.name.startswith("keys-"):
                path.unlink()
        return found

    def all(self, workers: int) -> None:
        try:
            for split in self.job.inputs:
                if split not in self.manifest["done"]:
                    self._split(split, workers)
        finally:
            for keys in self.keys.values():
                keys.close()
        self._finish()

    def _split(self, split: str, workers: int) -> None:
        own = [tuple(entry) for entry in self.manifest["skipped"].get(split, [])]
        bad, read = BadRecords(self.limit), self.manifest["read"].get(split, 0)
        bad.skipped += own
        records = itertools.islice(self.job.source.records(split, self.root, bad), read, None)
        work = functools.partial(outcomes, self.job.steps, self.job.splits)
        for (_, chunk), found in mapped(work, ((split, chunk) for chunk in _chunks(records)), workers):
            for event in itertools.chain.from_iterable(found):
                self._settle(event, bad, own)
            read += len(chunk)
            self._say(read)
            if self.shards.bytes >= self.job.shard_bytes:
                self._commit(split, read, own)
        of_source = [entry for entry in bad.skipped if entry not in set(own)]
        self._commit(split, read, of_source + own, done=True)

    def _settle(self, event: NamedTuple, bad: BadRecords, own: list[tuple[str, str]]) -> None:
        """Counts an event, answers a question, writes what stays."""
        match event:
            case Kept():
                self.tally.kept(event)
                self.shards.write(event.split, event.line)
            case Gave(step, number, why, shown):
                self.tally.step(step, number, why, shown)
            case Asked(step, key, shown, later):
                why = self.indexes[step].ask(key)
                self.tally.step(step, 0 if why else 1, why, shown)
                if not why:
                    self.keys[step].append(key)
                    for inner in later:
                        self._settle(inner, bad, own)
            case Bad(where, why):
                own.append((where, why))
                bad.skip(where, why)

    def _commit(self, split: str, read: int, skipped: list[tuple[str, str]], done: bool = False) -> None:
        """Everything up to record `read` of the split is on the disk, and the manifest says so."""
        self.manifest["shards"] += self.shards.close()
        self.manifest |= {
            "next": self.shards.numbers,
            "read": self.manifest["read"] | {split: read},
            "skipped": self.manifest["skipped"] | {split: skipped},
            "keys": {str(i): keys.sync() for i, keys in self.keys.items()},
            "done": [*self.manifest["done"], *([split] if done else [])],
            "tally": self.tally.state(),
        }
        folders.write_manifest(self.folder, self.manifest)

    def _say(self, read: int) -> None:
        if time.monotonic() - self.said > 0.2:
            self.said = time.monotonic()
            before = sum(self.manifest["read"][split] for split in self.manifest["done"])
            kept = sum(counts["records"] for counts in self.tally.splits.values())
            self.say(Progress(before + read, kept, opened.position() - self.begun, self.total))

    def _finish(self) -> None:
        """Writes the card, and the manifest of what others read."""
        shards = self.manifest["shards"]
        facts = self.job.facts | {
            "key": self.job.key,
            "read": self.manifest["read"],
            "skipped": self.manifest["skipped"],
        }
        found = card(self.tally, self.job.steps, facts) | {
            "shards": {shard["name"]: shard["sha256"] for shard in shards}
        }
        files.replace(self.folder / CARD, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        kept = {name: self.manifest[name] for name in ("key", "read", "skipped", "shards")}
        folders.write_manifest(self.folder, kept)


def _files(source: Source, split: str, root: Path) -> list[Path]:
    found = source.made_from(split, root)
    return found if isinstance(found, list) else []


def _chunks(records: Iterable[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    """Lists of records of about CHUNK_CHARACTERS together, in their order."""
    chunk, size = [], 0
    for where, record in records:
        chunk.append((where, record))
        size += sum(len(value) for value in record.values() if isinstance(value, (str, bytes)))
        if len(chunk) >= CHUNK_RECORDS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
