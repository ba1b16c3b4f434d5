"""Files opened for reading: decompressed by the ending of their names; one that is cut short or damaged is one line."""

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

COMPRESSED = (".gz", ".zst")


class _Position:
    """Where this process's reading stands: bytes of the files that it has left, and the file in which it is."""

    left = 0
    file: BinaryIO | None = None


def position() -> int:
    """Bytes of raw files that this process has read so far, as they lie on disk; for progress."""
    file = _Position.file
    return _Position.left + (file.tell() if file and not file.closed else 0)


def kind(path: Path) -> str:
    """The ending of a file's name that says what is in it: ".jsonl" of a.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


@contextlib.contextmanager
def raw(path: Path) -> Iterator[BinaryIO]:
    """The file's own bytes, whose reading `position` counts."""
    with paths.opened(path) as file:
        size, _Position.file = paths.stat(path).size, file
        try:
            yield file
        finally:
            _Position.left, _Position.file = _Position.left + size, None


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file's place on this machine, for readers of places alone: itself, or a copy of one in a bucket, then deleted."""
    with raw(path) as file:
        if not paths.is_remote(path):
            yield path
            return
        with tempfile.NamedTemporaryFile(suffix=path.suffix) as copy:
            shutil.copyfileobj(file, copy, 1 << 22)
            copy.flush()
            yield Path(copy.name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed where its name ends in .gz or .zst (the latter by pyarrow, the extra `parquet`).

    ValueError, one line with the file's name, where the bytes end too early or are none of that compression.
    """
    with raw(path) as file:
        if path.suffix not in COMPRESSED:
            yield file
            return
        with damage(path):
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else io.BufferedReader(_zstd(file, path), 1 << 20)


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """What decompressing raises, as ValueError of one line."""
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path} is cut short or damaged: {error}") from error


def _zstd(file: BinaryIO, path: Path) -> io.RawIOBase:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ValueError(f"{path}: Zstandard needs the package pyarrow: uv sync --extra parquet") from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
