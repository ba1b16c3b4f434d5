"""Record what a run's process is doing, in the run's goodput.jsonl."""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.core import processes
from bigmodel_jax.data.experience import phase_of
from bigmodel_jax.report import goodput

log = logging.getLogger(__name__)

BEAT_SECONDS = 30.0  # seconds between two lines; a kill loses at most this much time from the record
POLL_SECONDS = 0.001  # seconds between two looks at whether a batch is ready


class RunClock:
    """Attributes each moment of this process to a phase; a context manager.

    Before `open`, lines are kept in memory. After it, each line is one write to the end of the
    file, so a kill leaves whole lines. If the file cannot be written, a warning is logged and the
    run goes on.
    """

    def __init__(self, run_dir: Path, began: float | None = None):
        """began: when the process started, in seconds since 1970; None means now."""
        now = time.time()
        self._path, self._file, self._torn = Path(run_dir) / goodput.FILE, None, False
        self._offset = now - time.perf_counter()  # lines follow perf_counter, which nobody can set
        # The training loop and the thread of `_beats` both write lines. The lock guards all fields
        # that `_line` reads or changes, and the file.
        self._phase, self._step, self._lock = "other", 0, threading.Lock()
        self._waited = dict.fromkeys(goodput.WAITS, 0.0)
        self._last = int(1000 * min(now, began or now))
        self._kept: list[dict] | None = [{"time": self._last, "phase": goodput.START}]
        self._ended = threading.Event()

    def __enter__(self) -> "RunClock":
        return self

    def __exit__(self, *exception) -> None:
        """Write the last line, and log the split of the run so far."""
        text = self.text()
        self._ended.set()
        with self._lock:
            file, self._file, self._kept = self._file, None, None
        # No thread writes any more, so the file is closed outside of the lock.
        if file is not None:
            file.close()
            log.info("%s", text)

    def open(self, step: int) -> None:
        """Start writing the record, on process 0. The run begins or continues at `step`.

        The run's folder must exist.
        """
        kept, self._kept = self._kept, None
        if not processes.first():
            return
        try:
            file = open(self._path, "ab+", buffering=0)  # noqa: SIM115 - closed by __exit__
            size = file.seek(0, os.SEEK_END)
            # A kill in the middle of a write leaves a line without its end.
            self._torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        except OSError as error:
            log.warning("%s: %s; the wall time of this process is not recorded", self._path, error.strerror)
            return
        if before := goodput.read(self._path.parent):
            log.info("until now: %s", before.text())
        with self._lock:
            self._step, self._file = step, file
            for line in kept:
                self._write(line | {"step": step})
        # The thread is a daemon, so it does not keep the process alive if the main thread fails.
        threading.Thread(target=self._beats, name="run clock", daemon=True).start()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A block in which the process is in phase `name` of `goodput.PHASES`. Blocks may nest."""
        assert name in goodput.PHASES, name
        before = self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    def step(self, step: int, *, write: bool) -> None:
        """Report that `step` steps are done, as far as the host knows."""
        with self._lock:
            self._step = step
            if write:
                self._line()

    def next(self, batches: Any, state: Any, running: Any) -> Any:
        """The next batch of `batches`, an `Experience`, for `state`.

        running: arrays that the step on the device returns, or None. Time counts as waiting for
        data (or as a rollout) from when the device has finished that step. The arrays are polled,
        not waited for, so that the device is never blocked.
        """
        while not batches.wait(POLL_SECONDS) and not _finished(running):
            pass
        idle = time.perf_counter()
        batch = batches.next(state)
        with self._lock:
            self._waited[phase_of(batches)] += time.perf_counter() - idle
        return batch

    def text(self) -> str:
        """The split of the run so far in one line. It is empty if this process keeps no record."""
        with self._lock:
            self._line()
        found = goodput.read(self._path.parent) if self._file is not None else None
        return found.text() if found else ""

    def _enter(self, name: str) -> str:
        with self._lock:
            self._line()
            before, self._phase = self._phase, name
        return before

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._lock:
                # If a change of phase has written a line meanwhile, that line counts as a beat.
                if self._now() - self._last >= 1000 * BEAT_SECONDS:
                    self._line()

    def _now(self) -> int:
        return int(1000 * (time.perf_counter() + self._offset))

    def _line(self) -> None:
        """Write the line that ends the current stretch."""
        now = max(self._last, self._now())
        line = {"time": now, "phase": self._phase, "step": self._step}
        left = now - self._last
        # A wait longer than this stretch is carried over to the next one.
        for name, seconds in self._waited.items():
            # The part below a millisecond stays in `_waited` for the next line.
            if ms := min(int(1000 * seconds), left):
                line[name] = ms
                self._waited[name] -= ms / 1000
                left -= ms
        self._last = now
        if self._file is not None:
            self._write(line)
        elif self._kept is not None:
            self._kept.append(line)

    def _write(self, line: dict) -> None:
        # If a write was cut short, a line break ends that line, so that the next line is whole.
        content = (b"\n" if self._torn else b"") + json.dumps(line).encode() + b"\n"
        try:
            whole = self._file.write(content) == len(content)
        except OSError as error:
            whole = False
            if not self._torn:
                log.warning("%s: %s; a part of the wall time is not recorded", self._path, error.strerror)
        self._torn = not whole


def _finished(running: Any) -> bool:
    return all(x.is_ready() for x in jax.tree.leaves(running) if isinstance(x, jax.Array))
