"""Lines of files that may hold anything: bounded while they are read, and JSON that cannot bring the reader down."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bigmodel_jax.data.sources.opened import opened

MOST_BYTES = 1 << 28  # of a line, as of a document: a tokenizer holds a whole one in memory
BOM = b"\xef\xbb\xbf"  # what some editors put before UTF-8 text


def read_lines(path: Path, most: int = MOST_BYTES) -> Iterator[tuple[int, bytes, str]]:
    """(number, line, "") of each line but blank ones; (number, b"", what is wrong) of one of more than `most` bytes.

    No more than `most` bytes of a line are in memory. A byte-order mark before the first line is left out.
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


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[TextIO]:
    """The file's text for `csv`: what is not UTF-8 becomes U+FFFD."""
    with opened(path) as file:
        text = io.TextIOWrapper(file, newline="", encoding="utf-8-sig", errors="replace")
        try:
            yield text
        finally:
            text.detach()  # so that `file` is closed once, by whoever opened it


def _skip_rest(file: Any) -> None:
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def parse_json(line: bytes) -> tuple[Any, str]:
    """(the value, "") of a line of JSON, or (None, what is wrong with it)."""
    try:
        return json.loads(line.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at column {error.colno})"
    except RecursionError:
        return None, "JSON nested too deeply"
    except ValueError as error:  # a number of thousands of digits
        return None, f"not usable JSON ({error})"


def read_rows(reader: Any) -> Iterator[tuple[list[str], str]]:
    """(cells, "") of each row of a `csv.reader` but blank ones, or ([], what is wrong): a cell beyond csv's limit."""
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
