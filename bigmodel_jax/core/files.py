"""Atomic writes: a file or folder appears whole or not at all, even if the process dies or the disk
is full."""

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 3600.0  # a temporary file or folder older than this was left by a killed process


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives an OSError of the block the file name `path`, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a temporary file beside `path`, which replaces `path` when the block ends.

    The content is synced to disk before the rename, and the rename before this returns. If the
    block fails, the temporary file is deleted. If two processes replace the same file, the content
    of the later one stays. Raises OSError with the name `path`.
    """
    temporary = _beside(path)
    try:
        with named(path):
            _delete_stale(path)
            yield temporary
            # Without this sync a crash could leave the new name with empty content.
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) to `path` atomically; an OSError names `path`."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields the name of a new folder beside `path`, which is renamed to `path` when the block
    ends.

    If the block fails, the folder is deleted. At the rename `path` must be missing or empty. If two
    processes make the same folder, the later one gets an OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_stale(path)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Deletes a folder on this machine or in a bucket. Errors and a missing folder are ignored."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.rmtree(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")


def _delete_stale(path: Path) -> None:
    """Deletes the temporary files that killed processes have left beside `path`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.partial*"):
        with contextlib.suppress(FileNotFoundError):  # another process has deleted it
            if time.time() - _last_written(left) > STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _last_written(path: Path) -> float:
    """When a file, or the newest file in a folder, was last written, in seconds since 1970."""
    return max((p.stat().st_mtime for p in (path, *path.rglob("*"))), default=0.0)


def _sync(path: Path) -> None:
    """Waits until the disk holds a file's content, or a folder's entries."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
