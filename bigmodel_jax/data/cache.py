"""Prepared data on disk: a folder is either complete or absent, whoever prepares it and whatever kills them."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import paths
from bigmodel_jax.core.paths import check_local, expanded

log = logging.getLogger(__name__)

SEAL = "files.json"  # what the other files were when they were written
_checked: set[Path] = set()  # the folders that this process has read through once
_digests: dict[tuple[str, int, int], str] = {}  # by absolute name, size and time of change
SETTLED_NS = 2_000_000_000


def root(cache_dir: str = "") -> Path:
    """`cache_dir`, or $BIGMODEL_CACHE, or ~/.cache/bigmodel_jax."""
    place = os.environ.get("BIGMODEL_CACHE", "")
    check_local("data.cache_dir" if cache_dir else "BIGMODEL_CACHE", cache_dir or place)
    return expanded("data.cache_dir" if cache_dir else "BIGMODEL_CACHE", cache_dir or place or "~/.cache/bigmodel_jax")


def key(*parts: Any) -> str:
    """A short hash of JSON-serialisable facts: the same facts, the same folder."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """sha256 of a file's content, about a second per gigabyte; a process reads a file once while its size and time of
    change stay."""
    name, stat = paths.absolute(path), paths.stat(path)
    known = _digests.get((name, *stat))
    if known is None:
        known = sha256(path)
        if settled(stat.changed):
            know_digest(name, *stat, known)
    return known


def sha256(path: str | Path) -> str:
    """Of a file's content, read now."""
    with paths.opened(path) as file:
        if not paths.is_remote(path):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
        return digest.hexdigest()


def settled(mtime_ns: int) -> bool:
    """Whether a file changed so long ago that another change would show: not within one tick of the clock."""
    return time.time_ns() - mtime_ns > SETTLED_NS


def know_digest(name: str, size: int, mtime_ns: int, digest: str) -> None:
    """The file of this absolute name need not be read while its size and time of change are these."""
    _digests[name, size, mtime_ns] = digest


def content(value: Any) -> bytes:
    """Bytes that are the same wherever the value is: an array of objects would give their addresses."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        array = np.asarray(None)
    if array.dtype.hasobject:
        return json.dumps(value, sort_keys=True, default=_plain).encode()
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else repr(value)


@contextlib.contextmanager
def lock(path: Path):
    """Holds an exclusive lock beside `path`; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write(temporary folder)` unless it exists and its files are as they were written.

    The lock spares a second process the work; the rename makes the folder appear whole or not at all, also on file
    systems where locks do not reach other hosts. A damaged folder is named in the log and made again.
    """
    if is_whole(folder):  # without the lock, which a cache that cannot be written has not
        return folder
    with lock(folder):
        if is_whole(folder):
            return folder
        if folder.exists():
            log.warning("%s is damaged and is made again: %s", folder, _damage(folder))
            shutil.rmtree(folder)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
        partial.mkdir()
        try:
            write(partial)
            (partial / SEAL).write_text(json.dumps(_state(partial), indent=1) + "\n")
            os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if not folder.exists():  # otherwise another host was first, with the same content
                raise
    _checked.add(folder)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a folder's files are as they were written; each process reads them through once."""
    if folder.exists() and folder not in _checked and not _damage(folder):
        _checked.add(folder)
    return folder in _checked and folder.exists()


def _state(folder: Path) -> dict[str, list]:
    """{file: [bytes, crc32]} of a folder's files, the seal apart."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    return {str(p.relative_to(folder)): [p.stat().st_size, _crc32(p)] for p in files}


def _crc32(path: Path) -> int:
    """A flipped bit is what it must find, and it reads a gigabyte in a second."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _damage(folder: Path) -> str:
    """What is wrong with a folder's files; "" where nothing is."""
    try:
        sealed = json.loads((folder / SEAL).read_bytes())
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (ValueError, RecursionError):
        return f"{SEAL} is not JSON"
    found = _state(folder)
    if not isinstance(sealed, dict) or sealed.keys() != found.keys():
        return f"its files are not those of {SEAL}"
    return next((f"{name} has other content" for name in found if found[name] != sealed[name]), "")
