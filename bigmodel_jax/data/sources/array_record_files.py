"""Reads and writes ArrayRecord files of JSON objects, such as `launch.py prepare` writes."""

import contextlib
import dataclasses
import glob
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from array_record.python import array_record_module

from bigmodel_jax.core import files
from bigmodel_jax.data.sources.lines import parse_json, with_text
from bigmodel_jax.data.sources.opened import on_disk
from bigmodel_jax.data.sources.sources import Files

SUFFIX = ".array_record"
BATCH = 256  # records that are in memory at once


@dataclasses.dataclass(frozen=True)
class ArrayRecordFiles(Files):
    """ArrayRecord files of JSON objects, read in the order of their names."""

    text_field: str = "text"
    "the field that becomes the record's text"

    def shards(self, split, root, bad):
        return [dataclasses.replace(self, **{split: glob.escape(str(path))}) for path in self.paths(split)]

    def records(self, split, root, bad):
        for path in self.paths(split):
            for number, line in read(path):
                record, reason = parse_json(line)
                if not reason and not isinstance(record, dict):
                    reason = f"a JSON object is needed, not {type(record).__name__}"
                if not reason:
                    record, reason = with_text(record, self.text_field)
                if reason:
                    bad.skip(f"{path} record {number}", reason)
                else:
                    yield f"{path} record {number}", record


def read(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, bytes) of each record, from 0. Raises ValueError for a damaged file."""
    with on_disk(path) as place:
        # No read-ahead: a reader would otherwise start threads of its own.
        reader = _opened(place, "readahead_buffer_size:0,max_parallelism:0", path)
        total = reader.num_records()
        for first in range(0, total, BATCH):
            try:
                records = reader.read(first, min(first + BATCH, total))
            except RuntimeError as error:
                raise ValueError(f"{path} is damaged at record {first} or later: {str(error)[:100]}") from error
            yield from enumerate(records, first)


def _opened(path: Path, options: str, name: Path | None = None) -> array_record_module.ArrayRecordReader:
    """Open a reader. `name` is the file's name in messages, where `path` is a temporary copy."""
    reader = array_record_module.ArrayRecordReader(str(path), options)
    if not reader.ok():
        raise ValueError(f"{name or path} is not a whole ArrayRecord file: it was cut short, or has another form")
    return reader


class Records:
    """Random access to the records of a file, several at once. Threads may share an object.

    Each read checks the records' checksums, and raises a one-line ValueError for a damaged record.
    """

    def __init__(self, path: Path):
        self._path = path
        self._reader = _opened(path, "readahead_buffer_size:0")

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        try:
            return self._reader.read(list(numbers))
        except (RuntimeError, IndexError) as error:
            anew = "delete it, and the same command makes it again"
            raise ValueError(f"{self._path} is damaged; {anew}: {str(error)[:100]}") from error


@contextlib.contextmanager
def writing(path: Path, options: str) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends a record to a file, which becomes `path` whole or not at all.

    Raises a one-line ValueError where the disk is full.
    """
    with files.replacing(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), options)

        def append(record: bytes) -> None:
            with named(path):
                writer.write(record)

        yield append
        with named(path):
            writer.close()


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn a writer's error, such as a full disk, into a one-line ValueError."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be written: {str(error)[:100]}") from error


def json_line(record: dict) -> bytes:
    """Encode a record as JSON. Raises TypeError for values that JSON cannot express."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=_plain).encode("utf-8")


def _plain(value: object) -> object:
    """Convert the values that sources give besides texts, numbers and lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "isoformat"):  # a date or a time of a Parquet file
        return value.isoformat()
    if getattr(value, "ndim", 2) < 2:  # NumPy scalars and vectors; an image has more dimensions
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
