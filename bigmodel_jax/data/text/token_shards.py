"""Shards of tokens on disk: each is two ArrayRecord files, the tokens in blocks and an index of the documents.

A shard holds `S d1 S d2 ... S dn` (S the separator): the shards one after the other, and one more S, are the stream of
a split (packing.py). A record of the tokens is a block of BLOCK tokens, the last one shorter, uncompressed and by itself,
so that any place of the stream costs one block. The index is written last: a shard that has one is whole. Its first
record is JSON, the shard's facts; the others are the documents' lengths, each with its separator, as uint32.
"""

import json
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.data import cache
from bigmodel_jax.data.sources.array_record_files import SUFFIX, Records, writing
from bigmodel_jax.data.text.documents import chunks
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

MANIFEST = "manifest.json"
BLOCK = 4096  # tokens; 53,000 random blocks of this size are read a second on two cores, 91,000 of a fourth of it
INDEXED = 1 << 16  # documents in a record of the index
CHARACTERS = 1 << 20  # tokenized at a time
COUNTS = ("documents", "characters", "bytes", "tokens")

Facts = dict[str, Any]


def dtype(vocab_size: int) -> np.dtype:
    """Of tokens on disk."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def tokens_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.tokens{SUFFIX}"


def index_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.index{SUFFIX}"


def write(folder: Path, number: int, texts: Iterator[str], tokenizer: Tokenizer, skipped: list) -> None:
    """Writes shard `number`; `skipped` holds what was left out of it once `texts` has come to its end."""
    path, lengths = tokens_path(folder, number), []
    counts = dict.fromkeys(COUNTS, 0)
    with writing(path, "group_size:1,uncompressed") as append:
        blocks = _Blocks(append, dtype(tokenizer.vocab_size))
        for chunk, encoded in _ahead(chunks(texts, CHARACTERS), tokenizer):
            tokens, sizes = _joined(encoded, tokenizer.separator, blocks.dtype)
            blocks.extend(tokens)
            lengths.append(sizes)
            added = (
                len(chunk),
                sum(map(len, chunk)),
                sum(len(text.encode()) for text in chunk),
                len(tokens) - len(chunk),
            )
            counts = {name: counts[name] + n for name, n in zip(COUNTS, added, strict=True)}
        blocks.close()
    facts = (
        {"shard": number}
        | counts
        | {"file_bytes": path.stat().st_size, "sha256": cache.sha256(path), "skipped": skipped}
    )
    every = np.concatenate([np.zeros(0, "<u4"), *lengths])
    with writing(index_path(folder, number), "group_size:1") as append:
        append(json.dumps(facts, ensure_ascii=False).encode())
        for first in range(0, len(every), INDEXED):
            append(every[first : first + INDEXED].tobytes())


def _ahead(texts: Iterator[list[str]], tokenizer: Tokenizer) -> Iterator[tuple[list[str], Iterator[np.ndarray]]]:
    """(texts, the ids of each): while the caller takes those of one list, a thread tokenizes the next, outside Python."""
    before = None
    with futures.ThreadPoolExecutor(1) as thread:
        for chunk in texts:
            begun = chunk, thread.submit(tokenizer.encode_batch, chunk)
            if before:
                yield before[0], before[1].result()
            before = begun
        if before:
            yield before[0], before[1].result()


def _joined(encoded: Iterator[np.ndarray], separator: int, kind: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(`S d1 S d2 ...` as one array, the length of each document with its separator)."""
    front = np.array([separator], kind)
    parts = [part for ids in encoded for part in (front, ids.astype(kind))]
    return np.concatenate(parts), np.array([1 + len(ids) for ids in parts[1::2]], "<u4")


class _Blocks:
    """Tokens that are appended as blocks of BLOCK, whatever the pieces in which they come."""

    def __init__(self, append: Callable[[bytes], None], kind: np.dtype):
        self.dtype = kind
        self._append, self._rest = append, np.zeros(0, kind)

    def extend(self, tokens: np.ndarray) -> None:
        tokens = np.concatenate([self._rest, tokens])
        whole = len(tokens) - len(tokens) % BLOCK
        for first in range(0, whole, BLOCK):
            self._append(tokens[first : first + BLOCK].tobytes())
        self._rest = tokens[whole:]

    def close(self) -> None:
        if len(self._rest):
            self._append(self._rest.tobytes())


class Index(NamedTuple):
    """facts: of the shard; lengths (documents,) uint32: of each document with its separator."""

    facts: Facts
    lengths: np.ndarray


def read_index(folder: Path, number: int) -> Index:
    """ValueError, one line, for a shard that is missing, damaged, or has the index of another one."""
    path, tokens = index_path(folder, number), tokens_path(folder, number)
    try:
        first, *rest = (records := Records(path)).read(range(len(records)))
        facts = json.loads(first)
        lengths = np.frombuffer(b"".join(rest), "<u4")
        fits = len(lengths) == facts["documents"] and lengths.sum(dtype=np.int64) == facts["tokens"] + len(lengths)
        size = facts["file_bytes"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} is no index of tokens") from None
    if facts.get("shard") != number or not fits:
        raise ValueError(f"{path} is the index of another shard, or damaged")
    found = tokens.stat().st_size if tokens.is_file() else None
    if found != size:
        raise ValueError(f"{tokens} {'is missing' if found is None else f'has {found} bytes, not {size}'}")
    return Index(facts, lengths)


def read_manifest(folder: Path) -> Facts | None:
    """What the folder's manifest says; None where there is none, or it is damaged: then its shards say the same."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("shards"), list) else None


def write_manifest(folder: Path, facts: Facts, indexes: list[Index]) -> None:
    """`facts` with the shards' counts added up and their digests; the last file of a folder to be written."""
    shards = []
    for number, index in enumerate(indexes):
        path = index_path(folder, number)
        own = {name: value for name, value in index.facts.items() if name != "skipped"}
        shards.append(own | {"index_bytes": path.stat().st_size, "index_sha256": cache.sha256(path)})
    sums = {name: sum(shard[name] for shard in shards) for name in COUNTS}
    files.replace(folder / MANIFEST, json.dumps(facts | sums | {"shards": shards}, indent=1, ensure_ascii=False) + "\n")


def changed(folder: Path) -> list[tuple[int, Path]]:
    """(number of the shard, file) of each file whose content is not the manifest's, after reading all of it."""
    expected = []
    for number, shard in enumerate((read_manifest(folder) or {"shards": []})["shards"]):
        expected.append((number, tokens_path(folder, number), shard["sha256"]))
        expected.append((number, index_path(folder, number), shard["index_sha256"]))
    return [(number, path) for number, path, digest in expected if not path.is_file() or cache.sha256(path) != digest]
