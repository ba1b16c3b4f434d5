"""Files that are replaced whole or not at all, and folders made so, also when the process dies or the disk fills half-way."""

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 3600.0  # a temporary file or folder so old belongs to a process that was killed


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the name of a temporary file beside `path`; what the caller writes there becomes `path` at the end.

    The content is on the disk before the name changes, and the name before this returns. The temporary file is
    deleted where the caller fails. Two processes that replace one file do not meet: the later one's content stays.
    OSError names `path`.
    """
    temporary = _beside(path)
    try:
        _delete_stale(path)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) to `path`, whole or not at all; OSError names `path`."""
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields the name of a new folder beside `path`, which becomes it at the end; what failed half-way is deleted.

    `path` must not exist by then, or be empty: of two processes that make it, the later one gets an OSError.
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
    """Deletes a folder here or in a bucket, as far as that goes; nothing where there is none."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.rmtree(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")


def _delete_stale(path: Path) -> None:
    """Deletes what killed processes have left beside `path`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.partial*"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - _last_written(left) > STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _last_written(path: Path) -> float:
    """Of a folder: when the newest of its files was."""
    return max((p.stat().st_mtime for p in (path, *path.rglob("*"))), default=0.0)


def _sync(path: Path) -> None:
    """Waits until the disk has a file's content, or a folder's names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
