"""Arrays that are written to disk row by row, so that a whole split is never in memory."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy


def part(flat: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    """Return row `index` of a flat array in which the rows stand one after another. ends (N,): the
    end of each row.
    """
    return flat[ends[index - 1] if index else 0 : ends[index]]


class Column:
    """A context manager that writes a .npy file (rows, ...), one or several rows at a time."""

    def __init__(self, path: Path, dtype: Any = None):
        self.rows, self._dtype = 0, dtype and np.dtype(dtype)
        self._file, self._shape = open(path, "wb"), (0,)  # noqa: SIM115 - __exit__ closes it

    def append(self, row: Any) -> None:
        """Write one row."""
        self.extend(np.asarray(row)[None])

    def extend(self, rows: np.ndarray) -> None:
        """Write several rows.

        The first call fixes the shape of a row, and the dtype where none was given.
        """
        # Nothing is written yet, so this is the first call.
        if not self._file.tell():
            self._dtype, self._shape = self._dtype or rows.dtype, (0, *rows.shape[1:])
            self._write_header()
        assert rows.shape[1:] == self._shape[1:], (rows.shape, self._shape)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.rows += len(rows)

    def _write_header(self) -> None:
        """Write the header. NumPy pads it, so that a header with more rows has the same length."""
        shape = (self.rows, *self._shape[1:])
        facts = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, facts)

    def __enter__(self) -> "Column":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with self._file:
            # The number of rows is known only at the end, so the header is written again over the
            # first one.
            self._dtype = self._dtype or np.dtype(np.float64)
            self._file.seek(0)
            self._write_header()
