"""A split as shards of tokens on disk, made by any number of processes on any number of hosts, with the same bytes.

Each shard of the source becomes one of tokens, under a lock. A host of a job begins with the shards that are its own
(number modulo hosts) and goes on with those of others, last ones first, until all are there: nothing waits for a host
that is slow or gone. Where locks do not reach other hosts, a shard may be made twice, and both are alike.
"""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from bigmodel_jax.core import processes
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.corpus.workers import mapped
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.text import documents, token_shards
from bigmodel_jax.data.text.token_shards import Facts, Index
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer

FORMAT = 2  # raise it when the files of tokens change
READ_THROUGH = 1 << 26  # bytes of tokens that a process reads once to see whether they are as written; of more, sizes

_read: set[Path] = set()  # the folders that this process has read through

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is tokenized: a split of a source; `root` is the cache; `limit` is how many bad records a split may have."""

    source: Source
    split: str
    root: Path
    tokenizer: Path
    limit: int


def make(job: Job, folder: Path, workers: int = 1, say: Callable[[int, int], None] = lambda done, of: None) -> Path:
    """`folder` with the split's shards of tokens and their manifest; ValueError for bad input.

    Killed, or failed, it keeps the shards that are whole, and the next call makes the others. A shard that is damaged
    or missing is named in the log and made again. say: told how many of the shards are done.
    """
    if is_whole(folder):
        return folder
    bad = BadRecords(job.limit)
    shards = job.source.shards(job.split, job.root, bad)
    folder.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_shard, job, folder, shards, _threads(workers))
    order = turns(len(shards), *processes.place())
    for done, _ in enumerate(mapped(work, order, workers), 1):
        say(done, len(shards))
    with cache.lock(folder):  # processes end together, and each would delete what another writes
        if not is_whole(folder):
            _finish(job, folder, [token_shards.read_index(folder, number) for number in range(len(shards))], bad)
        _tidy(folder)
    return folder


def turns(count: int, host: int, hosts: int) -> list[int]:
    """The order in which a host of a job looks at shards: its own, then those of others from the last one on."""
    own = range(host, count, hosts)
    return [*own, *(number for number in reversed(range(count)) if number not in own)]


def is_whole(folder: Path) -> bool:
    """Whether the manifest is there, and the shards of which it speaks; of one that is damaged the index is deleted."""
    manifest = token_shards.read_manifest(folder)
    if manifest is None or not all(_fits(folder, number, shard) for number, shard in enumerate(manifest["shards"])):
        return False
    if folder not in _read and sum(shard["file_bytes"] for shard in manifest["shards"]) <= READ_THROUGH:
        damaged = token_shards.changed(folder)
        for number, path in damaged:
            log.warning("shard %d of %s is made again: %s has other content", number, folder, path.name)
            token_shards.index_path(folder, number).unlink(missing_ok=True)
        if damaged:
            return False
        _read.add(folder)
    return True


def _fits(folder: Path, number: int, shard: Facts) -> bool:
    try:
        facts = token_shards.read_index(folder, number).facts
    except ValueError:
        return False
    return {name: value for name, value in facts.items() if name != "skipped"}.items() <= shard.items()


def _threads(workers: int) -> int:
    """Threads of each process's tokenizer; 0: as many as it likes."""
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0


def _shard(job: Job, folder: Path, shards: Sequence[Source], threads: int, number: int) -> None:
    """Makes shard `number`, unless it is there."""
    if threads:
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read once, at the first batch of the process
    with cache.lock(folder / f"{number:05d}"):
        if _is_made(folder, number):
            return
        bad = BadRecords(job.limit)
        texts = (text for _, text in documents.usable(shards[number], job.split, job.root, bad))
        try:
            token_shards.write(folder, number, texts, _tokenizer(job.tokenizer), bad.skipped)
        except OSError:
            if not _is_made(folder, number):  # otherwise another host was first, with the same content
                raise


@functools.lru_cache(1)  # a process makes many shards; what a cache folder holds does not change
def _tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def _is_made(folder: Path, number: int) -> bool:
    index = token_shards.index_path(folder, number)
    if not index.exists():
        return False
    try:
        token_shards.read_index(folder, number)
    except ValueError as error:
        log.warning("shard %d of %s is made again: %s", number, folder, error)
        index.unlink(missing_ok=True)
        return False
    return True


def _finish(job: Job, folder: Path, indexes: list[Index], bad: BadRecords) -> None:
    """Writes the manifest."""
    for index in indexes:
        for where, reason in index.facts["skipped"]:
            bad.skip(where, reason)
    if not any(index.facts["documents"] for index in indexes):
        raise ValueError(f"data.source: the {job.split} split of {job.source} has no documents")
    tokenizer = _tokenizer(job.tokenizer)
    facts: Facts = {
        "split": job.split,
        "dtype": token_shards.dtype(tokenizer.vocab_size).name,
        "separator": tokenizer.separator,
        "bad_records": bad.skipped,
    }
    try:
        token_shards.write_manifest(folder, facts, indexes)
    except OSError:
        if not is_whole(folder):  # otherwise another host, which no lock reaches, was first with the same content
            raise


def _tidy(folder: Path) -> None:
    """Deletes what killed processes have left, and the shards' locks."""
    for left in (*folder.glob("*.partial-*"), *folder.glob("*.lock")):
        with contextlib.suppress(FileNotFoundError):
            left.unlink()
