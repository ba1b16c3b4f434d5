"""The files of a local save: shards of arrays one after the other, and a sealed JSON that lists
them.

`own_<p>.data` holds every distinct shard of process p. `copy_<p>.data` holds those that no other
host has. The JSON, `own_<p>.json`, is written last, so a file without it is incomplete. Its
"pieces" are rows [leaf, [[start, stop], ...], offset, bytes, crc32], where `leaf` is the index of
an array in "leaves".
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bigmodel_jax.checkpoint import manifest
from bigmodel_jax.checkpoint.manifest import Damaged
from bigmodel_jax.core import files

Key = tuple[int, tuple[tuple[int, int], ...]]  # index of the array; start and stop in each dimension


def key(leaf: int, index: tuple[slice, ...], shape: tuple[int, ...]) -> Key:
    """The key of a shard: its array and the range that it covers in each dimension."""
    return leaf, tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def as_bytes(x: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return memoryview(x.reshape(-1).view(np.uint8))


def rows(pieces: dict[Key, np.ndarray], checksums: dict[Key, int]) -> list[list]:
    """The "pieces" rows of a file that holds these shards in this order."""
    out, offset = [], 0
    for (leaf, index), x in pieces.items():
        out.append([leaf, [list(span) for span in index], offset, x.nbytes, checksums[leaf, index]])
        offset += x.nbytes
    return out


def by_key(header: dict) -> dict[Key, list]:
    """{key: row} of the pieces that a header lists."""
    return {(row[0], tuple(tuple(span) for span in row[1])): row for row in header["pieces"]}


def size(header: dict) -> int:
    """The number of bytes of all pieces that a header lists."""
    return sum(row[3] for row in header["pieces"])


def write(folder: Path, name: str, header: dict, chunks: Iterable[bytes | memoryview]) -> None:
    """Writes `<name>.data`, then `<name>.json` with the sealed header.

    An OSError names the file.
    """
    path = folder / f"{name}.data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "wb", buffering=0) as file:
            for chunk in chunks:
                _write_all(file, memoryview(chunk))
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    files.replace(folder / f"{name}.json", json.dumps(header))


def _write_all(file, chunk: memoryview) -> None:
    while chunk:
        # An unbuffered write may write less than it is given.
        chunk = chunk[file.write(chunk) :]


def read_header(folder: Path, name: str) -> dict:
    """The header that `write` stored.

    Raises Damaged if it has changed, or if the data's length has.
    """
    try:
        header = manifest.read(folder, f"{name}.json")
        found = (folder / f"{name}.data").stat().st_size
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error
    if found != size(header):
        raise Damaged(f"{name}.data has {found} bytes, not {size(header)}")
    return header


def read(folder: Path, name: str, row: list) -> bytes:
    """The bytes of one piece. Raises Damaged if they are not those that were written."""
    try:
        with open(folder / f"{name}.data", "rb") as file:
            file.seek(row[2])
            data = file.read(row[3])
    except OSError as error:
        raise Damaged(f"{name}.data: {error.strerror}") from error
    check(name, data, row)
    return data


def check(name: str, data: bytes, row: list) -> None:
    """Raises Damaged if a piece's length or checksum is not the one in its row."""
    if len(data) != row[3] or zlib.crc32(data) != row[4]:
        raise Damaged(f"{name}.data has a wrong checksum at byte {row[2]}")
