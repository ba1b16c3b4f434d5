"""Prepared data on disk: a folder is either complete or absent, whoever prepares it and whatever kills them."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def root(cache_dir: str = "") -> Path:
    """`cache_dir`, or $BIGMODEL_CACHE, or ~/.cache/bigmodel_jax."""
    return Path(cache_dir or os.environ.get("BIGMODEL_CACHE", "") or "~/.cache/bigmodel_jax").expanduser()


def key(*parts: Any) -> str:
    """A short hash of JSON-serialisable facts: the same facts, the same folder."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """sha256 of a file's content, about a second per gigabyte."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path):
    """Holds an exclusive lock beside `path`; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write(temporary folder)` unless it exists.

    The lock spares a second process the work; the rename makes the folder appear whole or not at all, also on file
    systems where locks do not reach other hosts.
    """
    if folder.exists():
        return folder
    with lock(folder):
        if folder.exists():
            return folder
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
        partial.mkdir()
        try:
            write(partial)
            os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if not folder.exists():  # otherwise another host was first, with the same content
                raise
    return folder
