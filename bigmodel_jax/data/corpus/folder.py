"""The folder of a prepared corpus: its shards, the keys that `Shared` steps keep, its manifest."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from array_record.python import array_record_module

from bigmodel_jax.core import files
from bigmodel_jax.data import cache
from bigmodel_jax.data.sources.array_record_files import SUFFIX, named

MANIFEST = "manifest.json"
OPTIONS = "group_size:64"  # records per compressed block
LENGTH = struct.Struct("<I")


def read_manifest(folder: Path) -> dict:
    """Return the folder's manifest, {} where there is none, or where `folder` is a file.

    Raises ValueError for a damaged manifest.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return parsed(content, str(folder))


def parsed(content: bytes, folder: str) -> dict:
    """Parse a manifest. Raises a one-line ValueError where it is damaged."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("shards"), list):
        raise ValueError(f"{folder}/{MANIFEST} is damaged; delete {folder!r}, and the same command makes it again")
    return found


def write_manifest(folder: Path, manifest: dict) -> None:
    """Replace the folder's manifest atomically."""
    files.replace(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def shard_paths(folder: Path, split: str) -> list[Path]:
    """Return the shards of a split in order. Raises ValueError for a missing or truncated shard."""
    found = []
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["name"]
        # A size costs no reading, so every opening compares it. `changed` compares the contents.
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            wrong = "is missing" if size is None else f"has {size} bytes"
            raise ValueError(f"{path} {wrong}, not {shard['bytes']} bytes; delete {str(folder)!r} to prepare it again")
        if shard["split"] == split:
            found.append(path)
    return found


def changed(folder: Path) -> list[str]:
    """Read all shards, and return those whose content differs from the manifest."""
    return [
        f"{folder / shard['name']} has other content than {MANIFEST} says"
        for shard in read_manifest(folder).get("shards", [])
        if not (folder / shard["name"]).is_file() or cache.sha256(folder / shard["name"]) != shard["sha256"]
    ]


def delete_uncommitted(folder: Path, manifest: dict) -> None:
    """Delete the files of an unfinished preparation that its manifest does not name, but for the
    keys."""
    named = {MANIFEST, *(shard["name"] for shard in manifest["shards"])}
    for path in folder.iterdir():
        if path.name not in named and not path.name.startswith("keys-"):
            path.unlink()


class Shards:
    """Writes one open shard per split. `close` gives the finished shards their final names."""

    def __init__(self, folder: Path, numbers: dict[str, int]):
        """Open the writer. `numbers` says how many shards each split already has."""
        self.folder, self.numbers = folder, dict(numbers)
        self._open: dict[str, array_record_module.ArrayRecordWriter] = {}
        self._counts: dict[str, list[int]] = {}
        self.bytes = 0

    def write(self, split: str, line: bytes) -> None:
        """Append one record to the open shard of a split."""
        if split not in self._open:
            self._open[split] = array_record_module.ArrayRecordWriter(str(self._partial(split)), OPTIONS)
            self._counts[split] = [0, 0]
        with named(self.folder / self._name(split)):
            self._open[split].write(line)
        self._counts[split][0] += 1
        self._counts[split][1] += len(line)
        self.bytes += len(line)

    def close(self) -> list[dict]:
        """Finish the open shards on disk, and return their entries of the manifest."""
        found = []
        # The sorted order does not depend on which split was written to first.
        for split in sorted(self._open):
            path, final = self._partial(split), self.folder / self._name(split)
            with named(final):
                self._open[split].close()
            # The final name appears only when the shard is complete and on disk.
            with files.replacing(final) as temporary:
                os.rename(path, temporary)
            records, size = self._counts[split]
            facts = {"name": final.name, "split": split, "records": records, "bytes": final.stat().st_size}
            found.append(facts | {"content_bytes": size, "sha256": cache.sha256(final)})
            self.numbers[split] = self.numbers.get(split, 0) + 1
        self._open, self._counts, self.bytes = {}, {}, 0
        return found

    def _partial(self, split: str) -> Path:
        return self.folder / f"{self._name(split)}.open"

    def _name(self, split: str) -> str:
        return f"{split}-{self.numbers.get(split, 0):05d}{SUFFIX}"


class Keys:
    """The keys that one `Shared` step let stay, in order. Its index can be rebuilt from them."""

    def __init__(self, path: Path, size: int):
        """Open the file and cut it to `size` bytes. The rest was written by a killed process."""
        self._path = path
        path.touch()
        os.truncate(path, size)
        self._file = open(path, "ab")  # noqa: SIM115 - `close` closes it

    def __iter__(self) -> Iterator[bytes]:
        with open(self._path, "rb") as file:
            while head := file.read(LENGTH.size):
                yield file.read(LENGTH.unpack(head)[0])

    def append(self, key: bytes) -> None:
        """Write one key."""
        with files.named(self._path):
            self._file.write(LENGTH.pack(len(key)) + key)

    def sync(self) -> int:
        """Flush the file to disk and return its size."""
        with files.named(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        with files.named(self._path):
            self._file.close()
