"""Reads lines, JSON and CSV of untrusted files with bounded memory and without crashing."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.sources.opened import opened

MOST_BYTES = 1 << 28  # limit for a line and for a document, because a tokenizer holds a whole document in memory
BOM = b"\xef\xbb\xbf"  # the byte-order mark that some editors put before UTF-8 text


def read_lines(path: Path, most: int = MOST_BYTES) -> Iterator[tuple[int, bytes, str]]:
    """Yield (number, line, "") of each line that is not blank.

    A line of more than `most` bytes gives (number, b"", what is wrong). No more than `most` bytes
    of it are in memory. A byte-order mark before the first line is removed.
    """
    number = 0
    with opened(path) as file:
        while line := file.readline(most + 1):
            number += 1
            if len(line) > most and not line.endswith(b"\n"):
                _skip_rest(file)
                yield number, b"", f"longer than {most} bytes"
                continue
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                yield number, line, ""


def with_text(record: dict[str, Any], field: str) -> tuple[dict[str, Any], str]:
    """Return (the record whose "text" is its field `field`, ""), or (the record, what is wrong)."""
    if field in record:
        return record | {"text": record[field]}, ""
    # The default is no mistake: tables of numbers have no text.
    wrong = f"no field {field!r} (data.source.text_field){nearest(field, record)}"
    return record, "" if field == "text" else wrong


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """Open a file as text for `csv`; bytes that are not UTF-8 become U+FFFD.

    Raises a one-line ValueError for an error of `csv`, such as a cell beyond its limit.
    """
    with opened(path) as file:
        text = io.TextIOWrapper(file, newline="", encoding="utf-8-sig", errors="replace")
        try:
            yield text
        except csv.Error as error:
            raise ValueError(f"{path} is not readable CSV: {error}") from error
        finally:
            text.detach()  # `file` is closed by `opened`


def _skip_rest(file: Any) -> None:
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def parse_json(line: bytes) -> tuple[Any, str]:
    """Return (the value, "") of a line of JSON, or (None, what is wrong with it)."""
    try:
        return json.loads(line.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        return None, "JSON nested too deeply"
    except ValueError as error:  # an integer of thousands of digits
        return None, f"not usable JSON ({error})"


def read_rows(reader: Any) -> Iterator[tuple[list[str], str]]:
    """Yield (cells, "") of each row of a `csv.reader` that is not blank.

    A row with a cell beyond csv's limit gives ([], what is wrong).
    """
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield [], str(error)
            continue
        if row:
            yield row, ""
