"""The folder of a prepared corpus: shards that are whole or absent, keys of what stayed, and the manifest of both."""

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
OPTIONS = "group_size:64"  # records that are compressed together
LENGTH = struct.Struct("<I")


def read_manifest(folder: Path) -> dict:
    """What the folder's manifest says; {} where there is none. ValueError, one line, for one that is damaged."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return {}
    return parsed(content, str(folder))


def parsed(content: bytes, folder: str) -> dict:
    """What a manifest says; ValueError, one line, where it is damaged."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("shards"), list):
        raise ValueError(f"{folder}/{MANIFEST} is damaged; delete {folder!r}, and the same command makes it anew")
    return found


def write_manifest(folder: Path, manifest: dict) -> None:
    files.replace(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split in their order; ValueError, one line, for one that is missing or has another size."""
    found = []
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["name"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["bytes"]:
            wrong = "is missing" if size is None else f"has {size} bytes"
            raise ValueError(f"{path} {wrong}, not {shard['bytes']} bytes; delete {str(folder)!r} to prepare it anew")
        if shard["split"] == split:
            found.append(path)
    return found


def changed(folder: Path) -> list[str]:
    """The shards whose content is not the manifest's, after reading all of it."""
    return [
        f"{folder / shard['name']} has other content than {MANIFEST} says"
        for shard in read_manifest(folder).get("shards", [])
        if not (folder / shard["name"]).is_file() or cache.sha256(folder / shard["name"]) != shard["sha256"]
    ]


class Shards:
    """Shards being written, one of each split; `close` gives them their names."""

    def __init__(self, folder: Path, numbers: dict[str, int]):
        """numbers: how many shards of each split there are."""
        self.folder, self.numbers = folder, dict(numbers)
        self._open: dict[str, array_record_module.ArrayRecordWriter] = {}
        self._counts: dict[str, list[int]] = {}
        self.bytes = 0

    def write(self, split: str, line: bytes) -> None:
        if split not in self._open:
            self._open[split] = array_record_module.ArrayRecordWriter(str(self._partial(split)), OPTIONS)
            self._counts[split] = [0, 0]
        with named(self.folder / self._name(split)):
            self._open[split].write(line)
        self._counts[split][0] += 1
        self._counts[split][1] += len(line)
        self.bytes += len(line)

    def close(self) -> list[dict]:
        """What a manifest says of the shards that were open, which are on the disk by now."""
        found = []
        for split in sorted(self._open):
            path, final = self._partial(split), self.folder / self._name(split)
            with named(final):
                self._open[split].close()
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
    """The keys that one `Shared` step let stay, in their order, from which its index is made again."""

    def __init__(self, path: Path, size: int):
        """size: how much of the file is meant; what a killed process wrote after it is cut off."""
        self._path = path
        path.touch()
        os.truncate(path, size)
        self._file = open(path, "ab")  # noqa: SIM115 - `close` closes it

    def __iter__(self) -> Iterator[bytes]:
        with open(self._path, "rb") as file:
            while head := file.read(LENGTH.size):
                yield file.read(LENGTH.unpack(head)[0])

    def append(self, key: bytes) -> None:
        self._file.write(LENGTH.pack(len(key)) + key)

    def sync(self) -> int:
        """The size of the file, once it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
