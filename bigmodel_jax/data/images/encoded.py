"""Images kept as files: read once in preparation, and decoded whenever a batch needs them."""

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.core import paths
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.images import pictures, threads
from bigmodel_jax.data.sources.source import Records

FORMAT = 1  # raise it when the cached files change
COLUMNS = {"end": np.int64, "crc": np.uint32, "label": np.int32, "size": np.int32}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The image files of a split.

    - data: the bytes of all files one after another, or with `by_path` the bytes of their paths.
    - end (N,): where each file or path ends in `data`.
    - crc (N,): the CRC-32 of each file's content.
    - label (N,): the classes.
    - size (N, 2): width and height.
    - meta: the contents of meta.json.
    """

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
        """Return (the bytes of a file, its name for messages).

        Raises ValueError where the file has changed since it was prepared, or no longer exists.
        """
        begin = int(self.end[row - 1]) if row else 0
        stored = self.data[begin : int(self.end[row])].tobytes()
        if not self.by_path:
            return stored, f"picture {row} of the {self.meta['split']} split"
        # A path on Linux may contain bytes that are not UTF-8; surrogateescape keeps them.
        name = stored.decode("utf-8", "surrogateescape")
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
        if zlib.crc32(content) != self.crc[row]:
            raise ValueError(f"{name} has changed since its split was prepared; start again to read it anew")
        return content, name


def load(folder: Path) -> Encoded:
    """Open what `write` wrote. The files' bytes are memory-mapped, other arrays are read."""
    meta = json.loads((folder / "meta.json").read_text())
    columns = {name: np.load(folder / f"{name}.npy") for name in COLUMNS}
    return Encoded(np.memmap(folder / "data.bin", np.uint8, mode="r"), **columns, by_path=meta["by_path"], meta=meta)


def write(folder: Path, split: str, records: Records, wrong: Callable[[dict[str, Any]], str], bad: BadRecords) -> int:
    """Write the usable records, and return how many there are.

    Each record has "image" (a path, a file's bytes, or an array (H, W, 1 or 3) uint8) and "label".
    `wrong` returns what makes a record unusable apart from its image, or "". A record is also
    unusable if its image is a path and the first record's is not, or the other way round.
    """
    by_path, place = None, 0
    with contextlib.ExitStack() as stack:
        columns = {name: stack.enter_context(Column(folder / f"{name}.npy", kind)) for name, kind in COLUMNS.items()}
        file = stack.enter_context(open(folder / "data.bin", "wb"))
        for where, found in threads.in_order(lambda pair: (pair[0], _checked(pair[1], wrong)), records):
            if isinstance(found, str):
                bad.skip(where, found)
                continue
            if by_path not in (None, found.by_path):
                forms = ("a local file", "content") if found.by_path else ("content", "a local file")
                bad.skip(where, "its picture is {}, the first record's is {}; give all in one form".format(*forms))
                continue
            by_path = found.by_path
            place += file.write(found.stored)
            row = {"end": place, "crc": found.crc, "label": found.label, "size": found.size}
            for name, column in columns.items():
                column.append(row[name])
    meta = {"split": split, "examples": columns["label"].rows, "by_path": bool(by_path), "bad_records": bad.skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return columns["label"].rows


@dataclasses.dataclass(frozen=True)
class _Found:
    """The values that `write` stores for one record."""

    stored: bytes
    by_path: bool
    crc: int
    size: tuple[int, int]
    label: int


def _checked(record: dict[str, Any], wrong: Callable[[dict[str, Any]], str]) -> _Found | str:
    """Return what is stored of a record, or what is wrong with it. This runs in several threads."""
    if reason := wrong(record):
        return reason
    image, label = record["image"], int(record["label"])
    try:
        content, by_path = _content(image), isinstance(image, Path)  # a file in a bucket is stored by its bytes
        size = pictures.check(content, "the file")
    except paths.Unanswered:  # the bucket did not answer, so the image may be good
        raise
    except (OSError, ValueError) as error:
        return str(error)
    stored = str(image.absolute()).encode("utf-8", "surrogateescape") if by_path else content
    return _Found(stored, by_path, zlib.crc32(content), size, label)


def _content(image: Any) -> bytes:
    """Return the bytes of an image file. An array is encoded as PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, os.PathLike):
        if paths.is_remote(image):
            return paths.read(image)
        if not image.is_file():  # opening a pipe would wait for ever
            raise ValueError(f"{image} is not a file")
        return image.read_bytes()
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3) or not image.size:
        raise ValueError(f"its picture is {image.dtype} {image.shape}; it must be uint8, of one or three channels")
    return pictures.encode(image)
