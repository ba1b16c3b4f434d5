"""Where the main thread of a training run stands, for the threads that watch it: a step that hangs cannot say so itself.

The loop of steps says `at(...)`, which costs a microsecond and waits for nothing. In a run of one process a thread of
this file ends a step that takes too long; in a job the watch between the processes does (cluster/peers.py).
This file knows nothing of JAX.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may work
FLOOR_SECONDS = 300.0  # the default limit of a step is never below it: a file server may be busy for minutes
TIMES = 10  # the default limit is so many times the median of the last steps
FIRST_STEPS, FIRST_SECONDS = 2, 1800.0  # the first steps may compile, tune kernels and connect to every other host
GAP_SECONDS = 5.0  # a watching thread that was not run for so long was stopped itself: nobody else hung

# The phases of a step, as a line says them. Whatever else the run does has no limit: compiling, evaluating, saving.
DATA, DEVICES, RECORD = "reading the data", "waiting for the devices", "writing the metrics"
STEP = (DATA, DEVICES, RECORD)


@dataclasses.dataclass(frozen=True)
class Beat:
    """What one process says of itself. Times are in seconds."""

    step: int
    phase: str
    seconds: float  # since the step began
    limit: float  # of a step; 0 = none
    whole: float  # median of the last steps, waiting for the devices included
    own: float  # median of the part of a step in which this process did not wait for the devices: data and metrics
    num: int = 0  # how many steps both medians are of

    @property
    def overdue(self) -> bool:
        return 0 < self.limit < self.seconds and self.phase in STEP


class Pulse:
    """The place of the main thread, and how long its last steps took."""

    def __init__(self, max_step_seconds: float | None = None, log: Path | None = None):
        self.maximum, self.log = max_step_seconds, log
        self._place = (0, "starting", time.monotonic())  # step, phase, begin of the step; replaced as one
        self._last, self._devices, self._whole_step, self._begun = time.monotonic(), 0.0, False, 0
        self._times: collections.deque[tuple[float, float]] = collections.deque(maxlen=100)  # (whole, own)

    def at(self, phase: str, step: int | None = None) -> None:
        """The main thread enters `phase`; a `step` is given where one begins."""
        now, (before, last, began) = time.monotonic(), self._place
        self._devices += now - self._last if last == DEVICES else 0.0
        self._whole_step &= last in STEP  # the median is of steps without an evaluation or a save
        if step is not None:
            if self._whole_step and self._begun > 1:  # the first step is on its way to the device, and not waited for
                self._times.append((now - began, now - began - self._devices))
            self._devices, self._whole_step, self._begun = 0.0, True, self._begun + 1
        if step is not None or last not in STEP:
            began = now
        self._last, self._place = now, (before if step is None else step, phase, began)

    def read(self) -> Beat:
        (step, phase, began), times = self._place, list(self._times)
        whole, own = (statistics.median(column) for column in zip(*times, strict=True)) if times else (0.0, 0.0)
        return Beat(step, phase, time.monotonic() - began, self._limit(whole), whole, own, len(times))

    def _limit(self, median: float) -> float:
        if self.maximum == 0:
            return 0.0
        usual = max(FLOOR_SECONDS, TIMES * median) if median else FIRST_SECONDS
        limit = usual if self.maximum is None else self.maximum
        return limit if self._begun > FIRST_STEPS else max(limit, FIRST_SECONDS)

    def forgive(self, seconds: float) -> None:
        """The whole process stood still for so long, as after Ctrl-Z: the step did not take that time."""
        step, phase, began = self._place
        self._place = (step, phase, began + seconds)


class Ticks:
    """Tells a watching thread how long it was kept from running, between two calls."""

    def __init__(self):
        self._last = time.monotonic()

    def gap(self) -> float:
        """Seconds since the last call, where they are too many for a thread that calls every second; otherwise 0."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        return gap if gap > GAP_SECONDS else 0.0


# ------------------------------------------------------------------------------------------------ the process's own pulse

_pulse = Pulse()


def at(phase: str, step: int | None = None) -> None:
    """The main thread enters `phase`; a `step` is given where one begins."""
    _pulse.at(phase, step)


def read() -> Beat:
    return _pulse.read()


def forgive(seconds: float) -> None:
    _pulse.forgive(seconds)


def log_file() -> Path | None:
    """Where stacks are written; None before the run has a folder."""
    return _pulse.log


@contextlib.contextmanager
def watched(max_step_seconds: float | None, log: Path, *, alone: bool) -> Iterator[None]:
    """A block whose steps have a limit: `max_step_seconds`, 0 for none, None for one that follows their median.

    alone: a run of one process, which this file ends with exit code 75; otherwise the watch of the job does.
    """
    global _pulse
    over, _pulse = threading.Event(), Pulse(max_step_seconds, log)
    if alone:
        threading.Thread(target=_watch, args=(over,), name="pulse", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        _pulse.at("ending")


def _watch(over: threading.Event) -> None:
    ticks = Ticks()
    while not over.wait(1.0):
        if gap := ticks.gap():
            forgive(gap)
        beat = read()
        if beat.overdue:
            text = (
                f"error: step {beat.step:,} was not done after {beat.seconds:.0f} s, above {limit_text(beat)}: this "
                f"process was {beat.phase}; {stacks_text()}the same command resumes the run"
            )
            write_stacks(text + "\n" + stacks("the only process"))
            say(text)
            os._exit(LOST)


def limit_text(beat: Beat) -> str:
    """The limit of a step, as a line says it."""
    given = _pulse.maximum is not None
    return f"train.max_step_seconds = {beat.limit:g}" if given else f"the limit of {beat.limit:.0f} s"


def stacks_text() -> str:
    """Where the stacks are, as a part of a line."""
    return f"the stacks of all threads are in {log_file()}; " if log_file() else ""


# ------------------------------------------------------------------------------------------------ stacks and last words


def stacks(name: str) -> str:
    """The stacks of all threads of this process, under a line with its name and its place."""
    beat = read()
    # To a local file first: faulthandler writes with the interpreter locked, and the log's disk may be what hangs.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    return f"stacks of {name}, step {beat.step}, {beat.phase}:\n{text}"


def write_stacks(text: str) -> None:
    """Appends `text` to the run's log in one write, so that several processes do not mix their lines."""
    path = log_file()
    if path is not None:
        aside(lambda: _append(path, text.rstrip("\n") + "\n"))


def _append(path: Path, text: str) -> None:
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        print(f"warning: {path}: {error.strerror}; the stacks are lost", file=sys.__stderr__, flush=True)


def say(text: str) -> None:
    """Prints a last line on stderr, where there is one to print."""
    aside(lambda: _print(text))


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # a pipe that nobody reads any more
        sys.stdout.flush()
    if text:
        # Not sys.stderr: another thread may be catching what is printed there, as reading the options does.
        print(text, file=sys.__stderr__, flush=True)


def aside(act: Callable[[], None], seconds: float = 10.0) -> None:
    """Runs `act` in a thread and waits so long at most: a dead file system must not keep the process from its end."""
    thread = threading.Thread(target=act, name="last words", daemon=True)
    thread.start()
    thread.join(seconds)
