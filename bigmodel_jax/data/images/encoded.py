"""Pictures as their files: read through once when a split is prepared, decoded whenever a batch needs them."""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.images import pictures, threads
from bigmodel_jax.data.sources.source import Records

FORMAT = 1  # raise it when the files below change
COLUMNS = {"end": np.int64, "crc": np.uint32, "label": np.int32, "size": np.int32}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Files of a split. data: their bytes one after another, or where `by_path` their paths; end (N,): where each ends;
    crc (N,) of each file's content; label (N,); size (N, 2): width and height."""

    data: np.ndarray
    end: np.ndarray
    crc: np.ndarray
    label: np.ndarray
    size: np.ndarray
    by_path: bool
    meta: dict

    def __len__(self) -> int:
        return len(self.label)

    def content(self, row: int) -> tuple[bytes, str]:
        """(the file, what it is called). ValueError for a file that has changed since it was prepared, or is gone."""
        begin = int(self.end[row - 1]) if row else 0
        stored = self.data[begin : int(self.end[row])].tobytes()
        if not self.by_path:
            return stored, f"picture {row} of the {self.meta['split']} split"
        name = stored.decode("utf-8", "surrogateescape")
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
        if zlib.crc32(content) != self.crc[row]:
            raise ValueError(f"{name} has changed since its split was prepared; start again to read it anew")
        return content, name


def load(folder: Path) -> Encoded:
    """What `write` wrote; only labels and places are in memory."""
    meta = json.loads((folder / "meta.json").read_text())
    columns = {name: np.load(folder / f"{name}.npy") for name in COLUMNS}
    return Encoded(np.memmap(folder / "data.bin", np.uint8, mode="r"), **columns, by_path=meta["by_path"], meta=meta)


def write(folder: Path, split: str, records: Records, wrong: Callable[[dict[str, Any]], str], bad: BadRecords) -> int:
    """Writes the usable records, each with "image" (a path, a file's bytes, or (H, W, 1 or 3) uint8) and "label", and returns
    how many there are. wrong: what makes a record unusable, its picture apart, or nothing."""
    by_path, place = False, 0
    with contextlib.ExitStack() as stack:
        columns = {name: stack.enter_context(Column(folder / f"{name}.npy", kind)) for name, kind in COLUMNS.items()}
        file = stack.enter_context(open(folder / "data.bin", "wb"))
        for where, found in threads.in_order(lambda pair: (pair[0], _checked(pair[1], wrong)), records):
            if isinstance(found, str):
                bad.skip(where, found)
                continue
            by_path = found.by_path
            place += file.write(found.stored)
            row = {"end": place, "crc": found.crc, "label": found.label, "size": found.size}
            for name, column in columns.items():
                column.append(row[name])
    meta = {"split": split, "examples": columns["label"].rows, "by_path": by_path, "bad_records": bad.skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return columns["label"].rows


@dataclasses.dataclass(frozen=True)
class _Found:
    stored: bytes
    by_path: bool
    crc: int
    size: tuple[int, int]
    label: int


def _checked(record: dict[str, Any], wrong: Callable[[dict[str, Any]], str]) -> _Found | str:
    """What is kept of a record, or what is wrong with it. Runs in several threads."""
    if reason := wrong(record):
        return reason
    image, label = record["image"], int(record["label"])
    try:
        content = _content(image)
        size = pictures.check(content, image if isinstance(image, Path) else "image")
    except (OSError, ValueError) as error:
        return str(error)
    by_path = isinstance(image, Path)
    stored = str(image.absolute()).encode("utf-8", "surrogateescape") if by_path else content
    return _Found(stored, by_path, zlib.crc32(content), size, label)


def _content(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        if not image.is_file():  # a pipe would be waited for
            raise ValueError(f"{image} is not a file")
        return image.read_bytes()
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
        raise ValueError(f"no picture of bytes in one or three channels, but {image.dtype} {image.shape}")
    return pictures.encode(image)
