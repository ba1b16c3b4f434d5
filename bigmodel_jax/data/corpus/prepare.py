"""Prepares a corpus: records are read in order, cleaned in one or several processes, and written.

The result's bytes depend only on the source and the steps. The number of processes and an
interruption do not change them. Progress is committed with each shard: the manifest says how many
records were read, and the next start continues after them.
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
from bigmodel_jax.data.corpus import finished
from bigmodel_jax.data.corpus import folder as folders
from bigmodel_jax.data.corpus.card import Tally, card
from bigmodel_jax.data.corpus.outcome import Asked, Bad, Gave, Kept, Splits, outcomes
from bigmodel_jax.data.corpus.workers import mapped
from bigmodel_jax.data.sources import opened
from bigmodel_jax.data.sources.source import Source

CARD = "data_card.json"
PROCESSES = "--engine processes"
CHUNK_RECORDS, CHUNK_CHARACTERS = 512, 1 << 20  # the size of the chunks that worker processes receive


@dataclasses.dataclass(frozen=True)
class Job:
    """The description of a preparation. `key` changes whenever the result does.

    - inputs: the source's splits in reading order.
    - splits: assigns each record to a split.
    - shard_bytes: the size at which a shard is closed.
    - facts: entries of the data card.
    """

    key: str
    source: Source
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    splits: Splits
    shard_bytes: int
    facts: dict


Engine = Callable[[Job, Path, Path, int], None]
"""(job, folder, root, max_bad_records): fills the folder with the shards, and calls `finish`.

The folder has a manifest, and what an interrupted call of the same job left.
"""


class Progress(NamedTuple):
    """The progress of a preparation.

    - records: records read so far.
    - kept: records written so far.
    - bytes, total: raw bytes read so far and in all (total is 0 where the source names no files).
    """

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
    engine: Engine | None = None,
) -> Path:
    """Return `folder` with the job's shards, manifest and data card. Prepare it where it is
    missing.

    The folder appears whole. An interrupted call leaves `folder`.partial, and the next call of the
    same job continues from there. Bad input leaves `folder`.partial only where a shard is complete.
    An `engine` does the work instead of this process and its `workers`, with the same bytes. Raises
    ValueError for bad input, and where `folder`.partial has work of the other kind.
    """
    if _is_of(job, folder):
        return folder
    with cache.lock(root / "corpus-locks" / cache.key(str(folder.absolute()))):
        if _is_of(job, folder):
            return folder
        partial = folder.with_name(f"{folder.name}.partial")
        if not _is_finished(job, partial):
            if engine:
                _continued(job, partial, _in_chunks())
                engine(job, partial, root, max_bad_records)
            else:
                _Run(job, partial, root, max_bad_records, say).all(workers)
        for keys in partial.glob("keys-*"):
            keys.unlink()
        shutil.rmtree(partial / finished.FOLDER, ignore_errors=True)
        os.rename(partial, folder)
    return folder


def _is_of(job: Job, folder: Path) -> bool:
    """Tell whether the folder holds this job's result. Raises ValueError where it holds another."""
    if not folder.exists():
        return False
    found = folders.read_manifest(folder)
    if found.get("key") != job.key:
        what = "another corpus" if found else "no corpus"
        raise ValueError(f"{str(folder)!r} holds {what}; delete it, or give another folder by --output")
    return True


def _is_finished(job: Job, partial: Path) -> bool:
    """Tell whether the work is done except for the renaming of the folder."""
    found = folders.read_manifest(partial) if partial.exists() else {}
    return found.get("key") == job.key and "tally" not in found


def _delete(partial: Path, manifest: dict) -> None:
    """Delete an unfinished preparation. Raises ValueError for a folder that no job made."""
    if not manifest and any(partial.iterdir()):
        raise ValueError(f"{str(partial)!r} is needed for the work, and holds something else; move it, or delete it")
    shutil.rmtree(partial)


def _in_chunks() -> str:
    """Return the name of an engine's work, with the size of its chunks: finished chunks of another
    size would not fit.
    """
    return f"--engine beam in chunks of {CHUNK_RECORDS} records and {CHUNK_CHARACTERS} characters"


def _continued(job: Job, folder: Path, by: str) -> dict:
    """Return the manifest of this job's unfinished preparation, or of a new empty folder.

    `by` names what does the work. Raises ValueError where something else has done a part of it.
    """
    found = folders.read_manifest(folder) if folder.exists() else {}
    if found.get("key") == job.key:
        if (was := found.get("by", PROCESSES)) == by:
            return found
        if found["read"] or (folder / finished.FOLDER).exists():
            raise ValueError(
                f"{str(folder)!r} was begun by {was}, and {by} cannot continue its work; continue with {was}, or "
                "delete the folder to start again"
            )
    if folder.exists():
        _delete(folder, found)
    folder.mkdir(parents=True)
    manifest = {"key": job.key, "by": by, "shards": [], "done": []} | {
        name: {} for name in ("read", "skipped", "next", "keys", "tally")
    }
    folders.write_manifest(folder, manifest)
    return manifest


class _Run:
    """One process's work on a job. `manifest` is the last committed state."""

    def __init__(self, job: Job, folder: Path, root: Path, limit: int, say: Callable[[Progress], None]):
        self.job, self.folder, self.root, self.limit, self.say = job, folder, root, limit, say
        self.manifest = self._found()
        self.tally = Tally(len(job.steps), self.manifest["tally"])
        self.shards = folders.Shards(folder, self.manifest["next"])
        shared = [i for i, step in enumerate(job.steps) if isinstance(step, Shared)]
        self.keys = {i: folders.Keys(folder / f"keys-{i}", self.manifest["keys"].get(str(i), 0)) for i in shared}
        self.indexes = {i: job.steps[i].index() for i in shared}
        # The indexes are rebuilt from the committed keys, because they depend on nothing else.
        for i, index in self.indexes.items():
            for key in self.keys[i]:
                index.ask(key)
        self.total = sum(paths.stat(p).size for split in job.inputs for p in _files(job.source, split, root))
        self.begun, self.said = opened.position(), 0.0

    def _found(self) -> dict:
        """Return the manifest so far. Files that a killed process left uncommitted are deleted."""
        found = _continued(self.job, self.folder, PROCESSES)
        folders.delete_uncommitted(self.folder, found)
        return found

    def all(self, workers: int) -> None:
        """Prepare all splits, and finish the folder."""
        try:
            for split in self.job.inputs:
                if split not in self.manifest["done"]:
                    self._split(split, workers)
        except ValueError:
            # Corrected files are another job, which would not look into this folder.
            if self.manifest["read"]:
                folders.delete_uncommitted(self.folder, self.manifest)
            else:
                shutil.rmtree(self.folder)
            raise
        finally:
            for keys in self.keys.values():
                keys.close()
        finish(self.job, self.folder, self.manifest, self.tally)

    def _split(self, split: str, workers: int) -> None:
        """Prepare one split, from the first record that is not committed yet."""
        own = [tuple(entry) for entry in self.manifest["skipped"].get(split, [])]
        bad, read = BadRecords(self.limit), self.manifest["read"].get(split, 0)
        bad.skipped += own
        # The committed records are read again and skipped, since a source has no random access.
        records = itertools.islice(self.job.source.records(split, self.root, bad), read, None)
        work = functools.partial(outcomes, self.job.steps, self.job.splits)
        for _, found in mapped(work, ((split, chunk) for chunk in chunks(records)), workers):
            for events in found:
                for event in events:
                    self._settle(event, bad, own)
                read += 1
                # The check runs after each record. A check after each chunk would let the size of
                # the chunks decide where a shard ends.
                if self.shards.bytes >= self.job.shard_bytes:
                    self._commit(split, read, own)
            self._say(read)
        # Records that the source itself reported as bad come first.
        of_steps = set(own)
        of_source = [entry for entry in bad.skipped if entry not in of_steps]
        self._commit(split, read, of_source + own, done=True)

    def _settle(self, event: NamedTuple, bad: BadRecords, own: list[tuple[str, str]]) -> None:
        """Count an event; for a question, answer it; for a record that stays, write it."""
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
        """Write everything up to record `read` of the split to disk, and update the manifest."""
        self.manifest["shards"] += self.shards.close()
        # Shards and keys are on disk before the manifest names them. After a kill there are at most
        # unnamed files, which the next start deletes.
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


def finish(job: Job, folder: Path, manifest: dict, tally: Tally) -> None:
    """Write the data card and the final manifest.

    `manifest` says which records were read and skipped, and lists the shards.
    """
    shards = manifest["shards"]
    facts = job.facts | {"key": job.key, "read": manifest["read"], "skipped": manifest["skipped"]}
    found = card(tally, job.steps, facts) | {"shards": {shard["name"]: shard["sha256"] for shard in shards}}
    files.replace(folder / CARD, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    folders.write_manifest(folder, {"key": job.key} | {name: manifest[name] for name in ("read", "skipped", "shards")})


def _files(source: Source, split: str, root: Path) -> list[Path]:
    found = source.made_from(split, root)
    return found if isinstance(found, list) else []


def chunks(records: Iterable[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    """Yield the records in order, in lists of about CHUNK_CHARACTERS characters."""
    chunk, size = [], 0
    for where, record in records:
        chunk.append((where, record))
        size += sum(len(value) for value in record.values() if isinstance(value, (str, bytes)))
        if len(chunk) >= CHUNK_RECORDS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
