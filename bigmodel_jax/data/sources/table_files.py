"""Records with named fields from JSON, CSV, TSV or Parquet files; the file's ending selects one."""

import csv
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bigmodel_jax.data.sources.lines import BOM, MOST_BYTES, opened_text, parse_json, read_lines, read_rows, with_text
from bigmodel_jax.data.sources.opened import COMPRESSED, kind, opened, raw
from bigmodel_jax.data.sources.sources import Files

BATCH = 1024  # Parquet rows that are in memory as objects

# (where, record, what is wrong with it or "")
Rows = Iterator[tuple[str, dict[str, Any], str]]


@dataclasses.dataclass(frozen=True)
class TableFiles(Files):
    """Rows of .jsonl, .json, .csv, .tsv and .parquet files. A record is a row's fields by name.

    A .json file holds either lines or one array of objects. All formats but Parquet may be
    compressed (.jsonl.gz, .csv.zst). Parquet and .zst need pyarrow (the extra `parquet`).
    """

    text_field: str = "text"
    "the field that becomes the record's text"

    def records(self, split, root, bad):
        for path in self.paths(split):
            if kind(path) not in READERS or (path.suffix in COMPRESSED and kind(path) == ".parquet"):
                endings = f"{', '.join(READERS)}; all but the last also with {' or '.join(COMPRESSED)} after it"
                raise ValueError(f"data.source.{split}: {str(path)!r} must end in {endings}")
            for where, record, reason in READERS[kind(path)](path):
                if not reason:
                    record, reason = with_text(record, self.text_field)
                if reason:
                    bad.skip(where, reason)
                else:
                    yield where, record


def read_jsonl(path: Path) -> Rows:
    """Yield the objects of a JSON Lines file."""
    for number, line, reason in read_lines(path):
        value, reason = (None, reason) if reason else parse_json(line)
        yield _object(f"{path} line {number}", value, reason)


def _object(where: str, value: Any, reason: str) -> tuple[str, dict[str, Any], str]:
    if not reason and not isinstance(value, dict):
        reason = f"a JSON object is needed, not {type(value).__name__}"
    return where, value if isinstance(value, dict) else {}, reason


def read_json(path: Path) -> Rows:
    """Yield the objects of one JSON array, which is held in memory, or of a file of lines."""
    with opened(path) as file:
        is_array = file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")
    if not is_array:
        yield from read_jsonl(path)
        return
    with opened(path) as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"{path}: it is one JSON array of more than {MOST_BYTES} bytes; write one object a line (.jsonl)"
        )
    values, reason = parse_json(text.removeprefix(BOM))
    if reason:
        raise ValueError(f"{path}: {reason}")
    for number, value in enumerate(values, 1):
        yield _object(f"{path} record {number}", value, "")


def read_csv(path: Path, delimiter: str = ",") -> Rows:
    """Yield the rows of a CSV file as {header: cell}."""
    with opened_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, [])
        for row, reason in read_rows(reader):
            if not reason and len(row) != len(header):
                reason = f"{len(row)} cells, but the header has {len(header)}"
            # A row of another length is only reported, so its cells need not match the header.
            yield f"{path} line {reader.line_num}", dict(zip(header, row, strict=False)), reason


def read_tsv(path: Path) -> Rows:
    """Yield the rows of a tab-separated file as {header: cell}."""
    return read_csv(path, delimiter="\t")


def read_parquet(path: Path) -> Rows:
    """Yield the rows of a Parquet file. One row group is in memory at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ValueError(f"{path}: Parquet needs the package pyarrow: uv sync --extra parquet") from None
    try:
        with raw(path) as opened_file, parquet.ParquetFile(opened_file) as file:
            number = 0
            for batch in file.iter_batches(BATCH):
                for record, reason in _rows(batch):
                    number += 1
                    yield f"{path} row {number}", record, reason
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _rows(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (record, what is wrong with it or "") of the rows of an Arrow batch."""
    try:
        yield from ((record, "") for record in batch.to_pylist())
    except UnicodeDecodeError as error:  # Parquet does not check that a text is UTF-8
        if batch.num_rows == 1:
            yield {}, f"not UTF-8 ({error.reason} at byte {error.start})"
        else:
            for row in range(batch.num_rows):
                yield from _rows(batch.slice(row, 1))


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
