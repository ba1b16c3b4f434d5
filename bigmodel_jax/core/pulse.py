"""Records the progress of a training run's main thread, so that other threads can detect a hung
step.

The training loop calls `at(...)`, which takes a microsecond and never blocks. In a run of one
process a thread of this module ends a step that takes too long. In a job of several processes
cluster/peers.py ends it. This module does not use JAX.
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

LOST = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later
FLOOR_SECONDS = 300.0  # the least default limit of a step: a file server may be busy for minutes
TIMES = 10  # the default limit is this many times the median of recent steps
FIRST_STEPS, FIRST_SECONDS = 2, 1800.0  # the first steps may compile, tune kernels and connect to every other host
GAP_SECONDS = 5.0  # a watching thread that did not run for so long was itself suspended, so no step is blamed

# The phases of a step, worded as messages name them. Other phases (compiling, evaluating, saving)
# have no time limit.
DATA, DEVICES, RECORD = "reading the data", "waiting for the devices", "writing the metrics"
STEP = (DATA, DEVICES, RECORD)


@dataclasses.dataclass(frozen=True)
class Beat:
    """The state that one process reports of itself. Times are in seconds."""

    step: int
    phase: str
    seconds: float  # since the step began
    limit: float  # the longest time that a step may take; 0 = no limit
    whole: float  # median duration of recent steps, including the wait for the devices
    own: float  # median time per step without that wait: reading data and writing metrics
    num: int = 0  # number of steps that both medians are taken over

    @property
    def overdue(self) -> bool:
        return 0 < self.limit < self.seconds and self.phase in STEP


class Pulse:
    """The main thread's step and phase, and the durations of its recent steps."""

    def __init__(self, max_step_seconds: float | None = None, log: Path | None = None):
        self.maximum, self.log = max_step_seconds, log
        self._place = (0, "starting", time.monotonic())  # (step, phase, start), replaced as a whole
        self._last, self._devices, self._whole_step, self._begun = time.monotonic(), 0.0, False, 0
        self._times: collections.deque[tuple[float, float]] = collections.deque(
            maxlen=100
        )  # (whole, own) seconds of each step

    def at(self, phase: str, step: int | None = None) -> None:
        """Records that the main thread enters `phase`. `step` is given at the start of a step."""
        now, (before, last, began) = time.monotonic(), self._place
        self._devices += now - self._last if last == DEVICES else 0.0
        self._whole_step &= last in STEP  # steps with an evaluation or a save are left out of the median
        if step is not None:
            if self._whole_step and self._begun > 1:  # the first step returns before the device has computed it
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
        """Moves the step's start forward by the time for which the whole process was suspended, as
        by Ctrl-Z."""
        step, phase, began = self._place
        self._place = (step, phase, began + seconds)


class Ticks:
    """Measures how long a watching thread was kept from running between two calls."""

    def __init__(self):
        self._last = time.monotonic()

    def gap(self) -> float:
        """Seconds since the last call if they exceed GAP_SECONDS, else 0; meant to be called every
        second."""
        now = time.monotonic()
        gap, self._last = now - self._last, now
        return gap if gap > GAP_SECONDS else 0.0


# -------------------------------------------------------------------------- the process's own pulse

_pulse = Pulse()


def at(phase: str, step: int | None = None) -> None:
    """Records that the main thread enters `phase`. `step` is given at the start of a step."""
    _pulse.at(phase, step)


def read() -> Beat:
    """The present state of the main thread."""
    return _pulse.read()


def forgive(seconds: float) -> None:
    """Moves the step's start forward by the time for which the whole process was suspended."""
    _pulse.forgive(seconds)


def log_file() -> Path | None:
    """The file for stack traces; None before the run has a folder."""
    return _pulse.log


@contextlib.contextmanager
def watched(max_step_seconds: float | None, log: Path, *, alone: bool) -> Iterator[None]:
    """A block whose steps have a time limit.

    max_step_seconds: the limit; 0 = none, None = one that follows the median step. log: the file
    for stack traces. alone: True in a run of one process. A thread then ends it with exit code 75.
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
    """The limit of a step, in the words of a message."""
    given = _pulse.maximum is not None
    return f"train.max_step_seconds = {beat.limit:g}" if given else f"the limit of {beat.limit:.0f} s"


def stacks_text() -> str:
    """The part of a message that names the file with the stack traces; "" without a file."""
    return f"the stacks of all threads are in {log_file()}; " if log_file() else ""


# ---------------------------------------------------------------------------- stacks and last words


def stacks(name: str) -> str:
    """The stack traces of all threads of this process, below a line with its name, step and
    phase."""
    beat = read()
    # `faulthandler` holds the interpreter's lock while it writes. The log's disk may be what hangs,
    # so the traces go to a local file first.
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    return f"stacks of {name}, step {beat.step}, {beat.phase}:\n{text}"


def write_stacks(text: str) -> None:
    """Appends `text` to the run's log in one write, so that lines of several processes do not
    mix."""
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
    """Prints a last line on stderr; an empty text only flushes stdout."""
    aside(lambda: _print(text))


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # a pipe that nobody reads
        sys.stdout.flush()
    if text:
        # The line goes to sys.__stderr__, because another thread may have redirected sys.stderr, as
        # the option parser does.
        print(text, file=sys.__stderr__, flush=True)


def aside(act: Callable[[], None], seconds: float = 10.0) -> None:
    """Runs `act` in a thread for at most `seconds`, so that a dead file system cannot block the
    exit."""
    thread = threading.Thread(target=act, name="last words", daemon=True)
    thread.start()
    thread.join(seconds)
