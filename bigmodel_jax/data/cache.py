"""Prepared data on disk: a cache folder is complete or absent, even when a process is killed."""

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

SEAL = "files.json"  # size and checksum of the folder's other files
_checked: set[Path] = set()  # folders that this process has verified
_digests: dict[tuple[str, int, int], str] = {}  # by absolute name, size and modification time
_asked: dict[str, paths.Stat] = {}  # by absolute name: size and time when the digest was last asked for
_writing: set[Path] = set()  # folders that this process fills now
SETTLED_NS = 2_000_000_000  # a file this old (2 s) cannot change unnoticed


def root(cache_dir: str = "") -> Path:
    """Return `cache_dir`, or else $BIGMODEL_CACHE, or else ~/.cache/bigmodel_jax."""
    place = os.environ.get("BIGMODEL_CACHE", "")
    check_local("data.cache_dir" if cache_dir else "BIGMODEL_CACHE", cache_dir or place)
    return expanded("data.cache_dir" if cache_dir else "BIGMODEL_CACHE", cache_dir or place or "~/.cache/bigmodel_jax")


def key(*parts: Any) -> str:
    """Return a short hash of JSON-serializable facts. Equal facts share a cache folder."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, at about a second per gigabyte.

    A process reads a file again only when its size or modification time has changed.
    """
    name, stat = paths.absolute(path), paths.stat(path)
    _asked[name] = stat
    known = _digests.get((name, *stat))
    if known is None:
        known = sha256(path)
        if settled(stat.changed):
            know_digest(name, *stat, known)
    return known


@contextlib.contextmanager
def filling(folder: Path):
    """Refuse files, inside the block, whose content is newer than their digest."""
    _writing.add(folder)
    try:
        yield
    finally:
        _writing.discard(folder)


def has_other_digest(path: str | Path, stat: paths.Stat) -> bool:
    """Tell whether this process fills a folder and last asked for the digest of older content."""
    return bool(_writing) and _asked.get(paths.absolute(path), stat) != stat


def sha256(path: str | Path) -> str:
    """Read a local or remote file and return the SHA-256 of its content; an OSError names it."""
    try:
        with paths.opened(path) as file:
            if not paths.is_remote(path):
                return hashlib.file_digest(file, "sha256").hexdigest()
            # hashlib.file_digest needs a real file; remote files are read in blocks of 4 MiB.
            digest = hashlib.sha256()
            while chunk := file.read(1 << 22):
                digest.update(chunk)
            return digest.hexdigest()
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a failed read has no name
        raise


def settled(mtime_ns: int) -> bool:
    """Tell whether a file is old enough that another change would change its modification time.

    Two changes within one tick of the file system's clock have the same time.
    """
    return time.time_ns() - mtime_ns > SETTLED_NS


def know_digest(name: str, size: int, mtime_ns: int, digest: str) -> None:
    """Remember a digest, so that this file is not read while its size and time stay the same."""
    _digests[name, size, mtime_ns] = digest


def content(value: Any) -> bytes:
    """Return bytes that depend on the value alone.

    An array of objects is written as JSON, because its bytes would be memory addresses.
    """
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
    """Hold an exclusive lock on the file `path`.lock; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return `folder`. Fill it by `write(temporary folder)` unless it exists undamaged.

    The lock keeps a second process from doing the same work. The rename makes the folder appear
    whole or not at all, also on file systems where locks do not reach other hosts. A damaged folder
    is logged and rebuilt.
    """
    if is_whole(folder):  # checked without the lock, because a read-only cache cannot hold the lock's file
        return folder
    with lock(folder):
        # Another process may have finished the folder while this one waited for the lock.
        if is_whole(folder):
            return folder
        if folder.exists():
            log.warning("%s is damaged and is made again: %s", folder, _damage(folder))
            shutil.rmtree(folder)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
        partial.mkdir()
        try:
            with filling(partial):
                write(partial)
            (partial / SEAL).write_text(json.dumps(_state(partial), indent=1) + "\n")
            # The seal is inside before the rename, so every folder that is visible is complete.
            os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if not folder.exists():  # otherwise another host finished first with the same content
                raise
    _checked.add(folder)
    return folder


def is_whole(folder: Path) -> bool:
    """Tell whether a folder is undamaged. Each process reads its files once."""
    if folder.exists() and folder not in _checked and not _damage(folder):
        _checked.add(folder)
    return folder in _checked and folder.exists()


def _state(folder: Path) -> dict[str, list]:
    """Return {file: [size in bytes, CRC-32]} of a folder's files except the seal."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    return {str(p.relative_to(folder)): [p.stat().st_size, _crc32(p)] for p in files}


def _crc32(path: Path) -> int:
    """Return a file's CRC-32, which detects flipped bits and reads a gigabyte in a second."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _damage(folder: Path) -> str:
    """Return what is wrong with a folder's files; "" where nothing is."""
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
