"""Tokenizes a split into shards, with any number of processes and hosts, always to the same bytes.

Each shard of the source becomes one token shard, under a lock. A host begins with its own shards
(shard number modulo hosts), and continues with those of other hosts from the last one on, until all
exist. So no host waits for one that is slow or gone. Where locks do not reach other hosts, a shard
may be made twice, with the same bytes.
"""

import contextlib
import ctypes
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
from bigmodel_jax.data.text.token_shards import Facts
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer

FORMAT = 2  # raise it when the token files change
READ_THROUGH = 1 << 26  # bytes of tokens; a larger split is verified by its sizes and not by its digests

_read: set[Path] = set()  # folders that this process has verified

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """A split to tokenize. `root` is the cache folder, `limit` the allowed bad records."""

    source: Source
    split: str
    root: Path
    tokenizer: Path
    limit: int


def make(job: Job, folder: Path, workers: int = 1, say: Callable[[int, int], None] = lambda done, of: None) -> Path:
    """Return `folder` with the split's token shards and manifest. Raises ValueError for bad input.

    An interrupted or failed call keeps the complete shards, and the next call makes the others. A
    damaged or missing shard is logged and made again. `say` gets the number of shards that are
    done, and the number of all shards.
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
    # Processes finish together. Without the lock each would delete files that another is writing.
    with cache.lock(folder):
        if not is_whole(folder):
            _finish(job, folder, [token_shards.read_index(folder, number).facts for number in range(len(shards))], bad)
        _tidy(folder)
    return folder


def turns(count: int, host: int, hosts: int) -> list[int]:
    """Return the order in which a host handles shards: its own, then the others' from the last."""
    # A host that has finished early takes over the shards that their own hosts would reach last.
    own = range(host, count, hosts)
    return [*own, *(number for number in reversed(range(count)) if number not in own)]


def is_whole(folder: Path) -> bool:
    """Tell whether all shards are undamaged. It deletes the index of a damaged shard, so that
    `make` writes the shard again.
    """
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
    """Return the threads of each process's tokenizer; 0: the tokenizer decides."""
    # Each tokenizer would otherwise start a thread for every core.
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0


def _shard(job: Job, folder: Path, shards: Sequence[Source], threads: int, number: int) -> None:
    """Make shard `number`, unless it exists."""
    if threads:
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizer reads it at the first batch of the process
    with cache.lock(folder / f"{number:05d}"):
        if _is_made(folder, number):
            return
        bad = BadRecords(job.limit)
        texts = (text for _, text in documents.usable(shards[number], job.split, job.root, bad))
        try:
            with cache.filling(folder):
                token_shards.write(folder, number, texts, _tokenizer(job.tokenizer), bad.skipped)
        except OSError:
            if not _is_made(folder, number):  # otherwise another host finished first with the same content
                raise
    _return_memory()


def _return_memory() -> None:
    """Return freed memory to the system.

    Otherwise the C library keeps it in fragments, and the process grows from shard to shard.
    """
    # Only glibc has this function.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@functools.lru_cache(1)  # a process makes many shards, and the content of a cache folder does not change
def _tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def _is_made(folder: Path, number: int) -> bool:
    """Tell whether a shard is complete. The index of a damaged one is deleted."""
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


def _finish(job: Job, folder: Path, shards: list[Facts], bad: BadRecords) -> None:
    """Write the manifest. Raises ValueError for too many bad records, or no documents."""
    for shard in shards:
        for where, reason in shard["skipped"]:
            bad.skip(where, reason)
    if not any(shard["documents"] for shard in shards):
        raise ValueError(f"data.source: the {job.split} split of {job.source} has no documents")
    tokenizer = _tokenizer(job.tokenizer)
    facts: Facts = {
        "split": job.split,
        "dtype": token_shards.dtype(tokenizer.vocab_size).name,
        "separator": tokenizer.separator,
        "bad_records": bad.skipped,
    }
    try:
        token_shards.write_manifest(folder, facts, shards)
    except OSError:
        if not is_whole(folder):  # otherwise another host finished first with the same content
            raise


def _tidy(folder: Path) -> None:
    """Delete files that killed processes left, and the shards' lock files."""
    for left in (*folder.glob("*.partial-*"), *folder.glob("*.lock")):
        with contextlib.suppress(FileNotFoundError):
            left.unlink()
