"""Token shards on disk: each is a file of token blocks and a file with an index of the documents.

Both are ArrayRecord files. A shard holds `S d1 S d2 ... S dn`, with S the separator. The shards in
order, followed by one more S, are the stream of a split (packing.py). A token record is an
uncompressed block of BLOCK tokens. The last is shorter. So a read of any position costs one block.
The index is written last, so a shard with an index is complete. The index's first record is JSON
with the facts of the shard. The others are the documents' lengths as uint32, each with its
separator.
"""

import itertools
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
BLOCK = 4096  # tokens; two cores read 53,000 random blocks of this size per second
INDEXED = 1 << 16  # documents per record of the index
CHARACTERS = 1 << 20  # characters that are tokenized at once
COUNTS = ("documents", "characters", "bytes", "tokens")

Facts = dict[str, Any]


def dtype(vocab_size: int) -> np.dtype:
    """Return the dtype of tokens on disk."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def tokens_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's tokens."""
    return folder / f"{number:05d}.tokens{SUFFIX}"


def index_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's index."""
    return folder / f"{number:05d}.index{SUFFIX}"


def write(folder: Path, number: int, texts: Iterator[str], tokenizer: Tokenizer, skipped: list) -> None:
    """Write shard `number`. `skipped` lists the bad records once `texts` is exhausted."""
    path, lengths = tokens_path(folder, number), []
    counts = dict.fromkeys(COUNTS, 0)
    # With one record per group, a read fetches only the blocks that it asks for.
    with writing(path, "group_size:1,uncompressed") as append:
        blocks = _Blocks(append, dtype(tokenizer.vocab_size))
        for chunk, encoded in _ahead(chunks(texts, CHARACTERS), tokenizer):
            tokens, sizes = _joined(encoded, tokenizer.separator, blocks.dtype)
            blocks.extend(tokens)
            lengths.append(sizes)
            # Counts follow the order of COUNTS.
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
    """Yield (texts, their ids). A thread tokenizes the next texts while the caller uses these."""
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
    """Return (`S d1 S d2 ...` as one array, the length of each document with its separator)."""
    front = np.array([separator], kind)
    parts = [part for ids in encoded for part in (front, ids.astype(kind))]
    return np.concatenate(parts), np.array([1 + len(ids) for ids in parts[1::2]], "<u4")


class _Blocks:
    """Collects tokens of any number, and appends them in blocks of BLOCK tokens."""

    def __init__(self, append: Callable[[bytes], None], kind: np.dtype):
        self.dtype = kind
        self._append, self._rest = append, np.zeros(0, kind)

    def extend(self, tokens: np.ndarray) -> None:
        tokens = np.concatenate([self._rest, tokens])
        # Tokens that fill no block wait for the next call.
        whole = len(tokens) - len(tokens) % BLOCK
        for first in range(0, whole, BLOCK):
            self._append(tokens[first : first + BLOCK].tobytes())
        self._rest = tokens[whole:]

    def close(self) -> None:
        if len(self._rest):
            self._append(self._rest.tobytes())


class Index(NamedTuple):
    """facts: the shard's JSON; lengths (documents,) uint32: each document with its separator."""

    facts: Facts
    lengths: np.ndarray


def read_index(folder: Path, number: int) -> Index:
    """Return a shard's index.

    Raises a one-line ValueError for a shard that is missing, damaged or has another shard's index.
    """
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


def read_tokens(folder: Path, number: int, kind: str) -> Iterator[np.ndarray]:
    """Yield a shard's tokens, a few blocks at a time. Raises ValueError for a damaged block."""
    records = Records(tokens_path(folder, number))
    for some in itertools.batched(range(len(records)), 64):
        yield np.frombuffer(b"".join(records.read(some)), kind)


def read_manifest(folder: Path) -> Facts | None:
    """Return the folder's manifest; None where it is missing or damaged.

    The shards hold the same facts, so the manifest can be made again.
    """
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("shards"), list) else None


def write_manifest(folder: Path, facts: Facts, indexes: list[Facts]) -> None:
    """Write the manifest: `facts`, the sums of the shards' counts, and the shards' digests.

    It is the last file of a folder to be written.
    """
    shards = []
    for number, index in enumerate(indexes):
        path = index_path(folder, number)
        own = {name: value for name, value in index.items() if name != "skipped"}
        shards.append(own | {"index_bytes": path.stat().st_size, "index_sha256": cache.sha256(path)})
    sums = {name: sum(shard[name] for shard in shards) for name in COUNTS}
    files.replace(folder / MANIFEST, json.dumps(facts | sums | {"shards": shards}, indent=1, ensure_ascii=False) + "\n")


def changed(folder: Path) -> list[tuple[int, Path]]:
    """Read all files, and return (shard number, file) of those that differ from the manifest."""
    expected = []
    for number, shard in enumerate((read_manifest(folder) or {"shards": []})["shards"]):
        expected.append((number, tokens_path(folder, number), shard["sha256"]))
        expected.append((number, index_path(folder, number), shard["index_sha256"]))
    return [(number, path) for number, path, digest in expected if not path.is_file() or cache.sha256(path) != digest]
