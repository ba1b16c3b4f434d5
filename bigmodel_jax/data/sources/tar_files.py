"""WebDataset tar files: consecutive files with the same key are the fields of one record."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources.lines import MOST_BYTES, with_text
from bigmodel_jax.data.sources.opened import opened
from bigmodel_jax.data.sources.source import Records
from bigmodel_jax.data.sources.sources import Files

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


@dataclasses.dataclass(frozen=True)
class TarFiles(Files):
    """Records of tar files in WebDataset's format.

    A member's key is its path up to the first dot of the file's name. An image (.jpg, .png, …)
    becomes "image", a .txt "text", and a .cls "label" (a whole number). The fields of a .json
    become fields of the record. Any other member is left out. Tar files may be compressed (.tar.gz,
    .tar.zst), and are read sequentially, one record at a time.
    """

    text_field: str = "text"
    "the field that becomes the record's text"
    image_size: CountOrZero = 0
    """side in pixels: images are scaled by the shorter side and cut at the centre; 0: they keep
    their size"""

    def records(self, split, root, bad):
        return self._records(split, bad, self._decoded)

    def encoded(self, split, root, bad):
        return self._records(split, bad, lambda content, extension: content)

    def _records(self, split: str, bad: BadRecords, read: Callable[[bytes, str], Any]) -> Records:
        """Yield the records. `read` converts the bytes of an image."""
        for path in self.paths(split):
            for key, members in _grouped(path):
                where = f"{path} {key}"
                try:
                    record = self._record(members, read)
                except ValueError as error:
                    bad.skip(where, str(error))
                    continue
                if record:
                    yield where, record

    def _decoded(self, content: bytes, extension: str) -> np.ndarray:
        image = pictures.decode(io.BytesIO(content), f".{extension}")
        return pictures.square(image, self.image_size) if self.image_size else image

    def _record(self, members: dict[str, bytes | None], read: Callable[[bytes, str], Any]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for extension, content in members.items():
            # A key ends at the first dot, so an extension may have several parts, such as seg.png.
            kind = extension.rpartition(".")[2].lower()
            if content is None:
                raise ValueError(f".{extension} is longer than {MOST_BYTES} bytes")
            if kind in PICTURES:
                record["image"] = read(content, extension)
            elif kind in READERS:
                record |= _read(kind, extension, content)
        record, reason = with_text(record, self.text_field) if record else (record, "")
        if reason:
            raise ValueError(reason)
        return record


def _read(kind: str, extension: str, content: bytes) -> dict[str, Any]:
    try:
        return READERS[kind](content)
    except (ValueError, RecursionError) as error:  # the types that json, int and decoding raise
        raise ValueError(f".{extension} is not readable: {str(error)[:100]}") from error


def _fields(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object is needed, not {type(found).__name__}")
    return found


READERS = {
    "txt": lambda content: {"text": content.decode("utf-8")},
    "cls": lambda content: {"label": int(content)},
    "json": _fields,
}


def _grouped(path: Path) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Yield (key, {extension: content}) of consecutive members with the same key.

    Raises a one-line ValueError for a truncated tar file.
    """
    key, members = "", {}
    with opened(path) as file:
        for name, content in _members(path, file):
            folder, slash, last = name.rpartition("/")
            stem, _, extension = last.partition(".")
            # A new key begins a new record.
            if (now := f"{folder}{slash}{stem}") != key:
                if members:
                    yield key, members
                key, members = now, {}
            members[extension] = content
    if members:
        yield key, members


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """Yield (name, content) of a tar's files. The content of a file that is too long is None."""
    try:
        # "r|" reads the file as a stream, so that compressed tars and buckets need no seek.
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.isfile():
                    content = tar.extractfile(member).read() if member.size <= MOST_BYTES else None
                    yield member.name.removeprefix("./"), content
                    tar.members = []  # tarfile would keep all members in memory
            # tarfile silently stops at the end of the file and at an invalid header. A whole tar
            # ends in zeros.
            if tar.fileobj.tell() - tar.offset < tarfile.BLOCKSIZE:
                raise ValueError(f"{path} is cut short or damaged: the end of the tar is missing")
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    raise ValueError(
                        f"{path} is cut short or damaged: no header at byte {tar.offset}, and more after it"
                    )
    except tarfile.TarError as error:
        raise ValueError(f"{path} is cut short or damaged: {error}") from error
