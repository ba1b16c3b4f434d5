"""A fingerprint of each step of a run, so that two runs can be compared step by step.

Line n of steps.hex is step n: the digest of its batch (checkpoint/digest.py) and the bits of its
loss, each as 8 hexadecimal digits.
"""

import logging
from pathlib import Path
from typing import IO

import numpy as np

from bigmodel_jax.core import processes

log = logging.getLogger(__name__)

FILE = "steps.hex"
LINE = 18  # bytes of a line
UNKNOWN = "-" * 8 + " " + "-" * 8 + "\n"  # the line of a step that an older version did not record


class StepTrace:
    """The file, written by process 0 only.

    If it cannot be written, a warning is logged and the run goes on without it.
    """

    def __init__(self, run_dir: Path, step: int):
        """step: the step that the run has reached. Lines of later steps are deleted, since those
        steps are repeated.
        """
        self._path, self._file = Path(run_dir) / FILE, None
        if processes.first():
            self.go_back(step)

    def go_back(self, step: int) -> None:
        """Drop all lines after that of `step`: the next line written is that of `step` + 1."""
        self.close()
        if not processes.first():
            return
        try:
            self._file = _opened(self._path, step)
        except OSError as error:
            self._give_up(error)

    def write(self, digest: np.uint32, loss: np.float32) -> None:
        """Append the line of one step."""
        if self._file is None:
            return
        try:
            self._file.write(f"{int(digest):08x} {int(np.float32(loss).view(np.uint32)):08x}\n".encode())
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _give_up(self, error: OSError) -> None:
        log.warning("%s: %s; further steps are not recorded there", self._path, error.strerror)
        self._file = None


def _opened(path: Path, step: int) -> IO[bytes]:
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by StepTrace.close
    # Cut the lines of later steps, and fill in steps that were never recorded.
    known = min(path.stat().st_size // LINE, step)
    file.truncate(known * LINE)
    file.write(UNKNOWN.encode() * (step - known))
    return file


def read(run_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(known, digests, losses), each with one entry per step. All are empty without a file.

    Entry n belongs to step n + 1. known: whether the file has a record of the step.
    """
    path = Path(run_dir) / FILE
    content = path.read_bytes() if path.is_file() else b""
    whole = [content[at : at + LINE] for at in range(0, len(content) - LINE + 1, LINE)]
    rows = [_numbers(line) for line in whole]
    known = np.array([row is not None for row in rows], bool)
    numbers = np.array([row or (0, 0) for row in rows], np.uint32).reshape(len(rows), 2)
    return known, numbers[:, 0], np.ascontiguousarray(numbers[:, 1]).view(np.float32)


def _numbers(line: bytes) -> tuple[int, int] | None:
    try:
        return int(line[:8], 16), int(line[9:17], 16)
    except ValueError:
        return None
