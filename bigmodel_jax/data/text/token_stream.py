"""The token stream of a split over its shards. Positions are read when they are asked for."""

import collections
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigmodel_jax.data.sources.array_record_files import Records
from bigmodel_jax.data.text.token_shards import BLOCK, tokens_path

OPEN = 256  # shards whose files are open at once


class TokenStream:
    """`S d1 S d2 ... S dn S`, indexed like an array: stream[places], with an array or a slice.

    `sizes` (shards,) are the tokens of each shard, separators included. `separator` is the stream's
    last token. Raises a one-line ValueError where a block is damaged. Threads may share an object.
    """

    def __init__(self, folder: Path, sizes: np.ndarray, dtype: np.dtype, separator: int):
        self.dtype, self._folder, self._separator = np.dtype(dtype), folder, separator
        self._starts = np.cumsum([0, *sizes])
        # Blocks are numbered consecutively over all shards.
        self._first_block = np.cumsum([0, *(-(-size // BLOCK) for size in sizes)])
        self._files: collections.OrderedDict[int, Records] = collections.OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1]) + 1

    def __getitem__(self, places: np.ndarray | slice) -> np.ndarray:
        if isinstance(places, slice):
            low, high, step = places.indices(len(self))
            return self._span(low, max(low, high))[::step] if step > 0 else self[np.arange(low, high, step)]
        places = np.asarray(places, np.int64)
        flat = places.ravel()
        if len(self) == 1 or not len(flat):
            return np.full(places.shape, self._separator, self.dtype)
        if flat.min() < 0 or flat.max() >= len(self):
            raise IndexError(f"places {flat.min()} to {flat.max()} of a stream of {len(self)} tokens")
        closing = flat == len(self) - 1
        # The closing separator is in no shard, so the place before it is read and overwritten.
        found = self._read(flat - closing)
        found[closing] = self._separator
        return found.reshape(places.shape)

    def parts(self) -> Iterator[np.ndarray]:
        """Yield the whole stream, a few blocks at a time."""
        for first in range(0, len(self), 64 * BLOCK):
            yield self[first : first + 64 * BLOCK]

    def _span(self, low: int, high: int) -> np.ndarray:
        """Return stream[low:high] without an array of positions."""
        # The closing separator is in no shard, so it is added here.
        parts = [np.full(int(low < high == len(self)), self._separator, self.dtype)]
        for shard in reversed(range(len(self._starts) - 1)):
            start, end = max(low, self._starts[shard]), min(high, self._starts[shard + 1])
            if start < end:
                first, last = (start - self._starts[shard]) // BLOCK, -(-(end - self._starts[shard]) // BLOCK)
                tokens = self._blocks(self._first_block[shard] + np.arange(first, last)).ravel()
                begin = start - self._starts[shard] - first * BLOCK
                parts.append(tokens[begin : begin + end - start])
        return np.concatenate(parts[::-1])

    def _read(self, places: np.ndarray) -> np.ndarray:
        """Return the tokens at these positions, without the closing separator."""
        shard = np.searchsorted(self._starts, places, side="right") - 1
        inside = places - self._starts[shard]
        block = self._first_block[shard] + inside // BLOCK
        # Neighbouring positions mostly lie in the same block, so only one number per run of them is
        # sorted.
        heads = np.append(True, block[1:] != block[:-1]).nonzero()[0]
        wanted, nth = np.unique(block[heads], return_inverse=True)
        slot = np.repeat(nth, np.diff(np.append(heads, len(block))))
        return self._blocks(wanted)[slot, inside % BLOCK]

    def _blocks(self, wanted: np.ndarray) -> np.ndarray:
        """Return blocks (len(wanted), BLOCK). A shard's last block is padded with zeros."""
        out = np.zeros((len(wanted), BLOCK), self.dtype)
        shards = np.searchsorted(self._first_block, wanted, side="right") - 1
        bounds = np.append(np.unique(shards, return_index=True)[1], len(wanted))
        for low, high in itertools.pairwise(bounds):
            shard = int(shards[low])
            records = self._file(shard).read((wanted[low:high] - self._first_block[shard]).tolist())
            for row, record in enumerate(records, low):
                out[row, : len(record) // self.dtype.itemsize] = np.frombuffer(record, self.dtype)
        return out

    def _file(self, shard: int) -> Records:
        """Return a shard's tokens, opened at first use. The least recently used file is closed."""
        found = self._files.pop(shard, None)
        if found is None:
            path = tokens_path(self._folder, shard)
            found, blocks = Records(path), int(self._first_block[shard + 1] - self._first_block[shard])
            if len(found) != blocks:
                raise ValueError(f"{path} has {len(found)} blocks of tokens, and its index says {blocks}")
        self._files[shard] = found
        if len(self._files) > OPEN:
            self._files.popitem(last=False)
        return found


def offsets(lengths: list[np.ndarray]) -> np.ndarray:
    """Return (documents + 1,) int64: the position of each document's separator, and of the last."""
    sizes = np.concatenate([np.zeros(0, np.uint32), *lengths])
    out = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=out[1:])
    return out
