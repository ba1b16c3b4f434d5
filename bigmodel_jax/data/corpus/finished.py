"""The finished pieces of an engine's work on a corpus, from which an interrupted pipeline
continues.

Each piece is one file in <folder>/finished, which appears whole or not at all: the events of a
chunk, the facts of a part of the source, the verdicts of a large group, the facts of a shard. A
piece depends on the job and on the sizes of chunks alone, so every worker writes the same bytes.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bigmodel_jax.core import files
from bigmodel_jax.data.corpus.outcome import Asked, Bad, Gave, Kept

FOLDER = "finished"
KINDS = {"kept": Kept, "gave": Gave, "asked": Asked, "bad": Bad}
NAMES = {kind: name for name, kind in KINDS.items()}


def path(folder: Path, name: str) -> Path:
    """Return the file of the piece `name`, such as chunks/0/12."""
    return folder / FOLDER / name


def read(folder: Path, name: str) -> Any:
    """Return the JSON value of a piece; None where it is missing or damaged."""
    try:
        return json.loads(zlib.decompress(path(folder, name).read_bytes()))
    except (FileNotFoundError, zlib.error, ValueError):  # zlib's checksum covers all bytes
        return None


def write(folder: Path, name: str, value: Any) -> None:
    """Store the JSON value of a piece."""
    path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    files.replace(path(folder, name), zlib.compress(json.dumps(value).encode(), 1))


def once(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """Return the JSON value of a piece, which `make` computes if the piece does not exist.

    Tuples come back as lists.
    """
    found = read(folder, name)
    if found is None:
        write(folder, name, made := make())
        # The round trip through JSON gives the caller the same types as a later reading of the
        # file.
        found = json.loads(json.dumps(made))
    return found


def to_json(events: list[list]) -> list[list[list]]:
    """Return the events of a chunk's records as JSON. Bytes become characters of Latin-1."""
    return [[_plain(event) for event in record] for record in events]


def from_json(found: list[list[list]]) -> list[list]:
    """Return the events that `to_json` was given."""
    return [[_event(entry) for entry in record] for record in found]


def _plain(event: NamedTuple) -> list:
    match event:
        case Kept():
            event = event._replace(line=event.line.decode("latin-1"))
        case Asked():
            event = event._replace(key=event.key.decode("latin-1"), later=[_plain(inner) for inner in event.later])
    return [NAMES[type(event)], *event]


def _event(entry: list) -> NamedTuple:
    event = KINDS[entry[0]](*entry[1:])
    match event:
        case Kept():
            return event._replace(line=event.line.encode("latin-1"))
        case Asked():
            return event._replace(key=event.key.encode("latin-1"), later=[_event(inner) for inner in event.later])
    return event
