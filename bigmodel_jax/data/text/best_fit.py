"""Packs pieces into rows by best-fit decreasing over a histogram of lengths.

The longest pieces are placed first, each into the row with the least room that takes it. Rows with
equal room are interchangeable, so whole groups of pieces and rows are placed at once. The time is
about that of a count of the lengths. The memory is proportional to the number of pieces and the
row's length. Sources: packing by histogram, arXiv:2107.02027; best fit of pieces cut at the row's
length, arXiv:2404.10830.
"""

import bisect

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Return the row of each piece, int32. No length may exceed `capacity`."""
    # NumPy sorts 16-bit numbers by radix sort, which is faster.
    order = np.argsort(lengths.astype(np.uint16 if capacity < 1 << 16 else np.int64), kind="stable")
    count = np.bincount(lengths, minlength=capacity + 1)
    ends = np.cumsum(count)
    row, rows = np.empty(len(lengths), np.int32), _Rows(capacity)
    for length in np.flatnonzero(count)[::-1].tolist():
        row[order[ends[length] - count[length] : ends[length]]] = rows.take(length, int(count[length]))
    return row


class _Rows:
    """Rows grouped by the room that they have left."""

    def __init__(self, capacity: int):
        self._capacity, self._used = capacity, 0
        self._rooms: list[int] = []  # the keys of `_rows`, sorted
        self._rows: dict[int, list[np.ndarray]] = {}

    def take(self, length: int, count: int) -> np.ndarray:
        """Return the rows (count,) for this many pieces of one length."""
        found = []
        while count:
            at = bisect.bisect_left(self._rooms, length)
            room = self._rooms[at] if at < len(self._rooms) else self._capacity
            # Pieces per row: after one piece, the same row is the tightest that takes the next.
            fit = room // length
            wanted = -(-count // fit)
            rows = self._from(at, wanted) if at < len(self._rooms) else self._new(wanted)
            placed = np.repeat(rows, fit)[:count]
            # All rows but the last take `fit` pieces. The last takes the rest.
            full, rest = divmod(len(placed), fit)
            self._put(room - fit * length, rows[:full])
            self._put(room - rest * length, rows[full:])
            found.append(placed)
            count -= len(placed)
        return np.concatenate(found)

    def _from(self, at: int, wanted: int) -> np.ndarray:
        """Remove at most `wanted` rows with the room `_rooms[at]`, and return them."""
        room = self._rooms[at]
        rows = np.concatenate(self._rows[room])
        if len(rows) > wanted:
            self._rows[room] = [rows[wanted:]]
        else:
            del self._rows[room], self._rooms[at]
        return rows[:wanted]

    def _new(self, count: int) -> np.ndarray:
        self._used += count
        return np.arange(self._used - count, self._used, dtype=np.int32)

    def _put(self, room: int, rows: np.ndarray) -> None:
        if len(rows) and room:
            if room not in self._rows:
                bisect.insort(self._rooms, room)
                self._rows[room] = []
            self._rows[room].append(rows)
