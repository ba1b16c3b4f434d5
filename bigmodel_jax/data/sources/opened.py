"""Opens files for reading, decompresses them, and counts the bytes read for progress displays."""

import contextlib
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bigmodel_jax.core import paths
from bigmodel_jax.data import cache

COMPRESSED = (".gz", ".zst")


class _Position:
    """The state of this process's reading: bytes of the files it has closed, and the open file."""

    left = 0
    file: BinaryIO | None = None


def position() -> int:
    """Return how many raw (compressed) bytes of files this process has read so far."""
    file = _Position.file
    return _Position.left + (file.tell() if file and not file.closed else 0)


def kind(path: Path) -> str:
    """Return the ending of a name without that of its compression: ".jsonl" of a.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


@contextlib.contextmanager
def raw(path: Path) -> Iterator[BinaryIO]:
    """Open a file's raw bytes; `position` counts what is read of them.

    Raises a one-line ValueError with the file's name where it is damaged, cannot be read, or
    changes while it is read, or has changed since the digest of the data that are now prepared.
    """
    # The errors of reading and of decompression arrive here from the caller's block.
    with _one_line(path), paths.opened(path) as file:
        before, _Position.file = paths.stat(path), file
        try:
            # Prepared data is stored under the digest, so it must not hold other content.
            _check(path, not cache.has_other_digest(path, before))
            yield file
            _check(path, paths.stat(path) == before)
        finally:
            # The whole file counts, even if its reader stopped early, so that the sum reaches the
            # total.
            _Position.left, _Position.file = _Position.left + before.size, None


def _check(path: Path, same: bool) -> None:
    if not same:
        raise ValueError(f"{path} changed while the command ran; the same command reads it again")


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield the path of a file on this machine, for readers that need one.

    A file in a bucket is copied to a temporary file, which is deleted afterwards.
    """
    with raw(path) as file:
        if not paths.is_remote(path):
            yield path
            return
        with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
            # The reader opens the file by its name, so all bytes must be written by then.
            copy.flush()
            yield Path(copy.name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, decompressed where its name ends in .gz or .zst.

    .zst needs pyarrow (the extra `parquet`). Raises a one-line ValueError as `raw` does.
    """
    with raw(path) as file:
        if path.suffix == ".gz":
            yield gzip.GzipFile(fileobj=file)
        else:
            yield io.BufferedReader(_zstd(file, path), 1 << 20) if path.suffix == ".zst" else file


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn the errors of reading and of decompression into a one-line ValueError."""
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        # Only an error of the operating system has a number.
        of_system = isinstance(error, OSError) and error.errno
        what = f"cannot be read: {error.strerror}" if of_system else f"is cut short or damaged: {error}"
        raise ValueError(f"{path} {' '.join(what.split())}") from error


def _zstd(file: BinaryIO, path: Path) -> io.RawIOBase:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ValueError(f"{path}: Zstandard needs the package pyarrow: uv sync --extra parquet") from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
