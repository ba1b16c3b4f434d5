"""Split a run's wall time by activity, over all its restarts.

goodput.jsonl has one line for each stretch of time: {"time", "phase", "step", "data", "rollout"}. A
line means that the process was in `phase` from the previous line's time until `time` (milliseconds
since 1970). At `time`, `step` steps were done. `data` and `rollout` are parts of the stretch in
milliseconds: in `data` the idle device waited for a batch, in `rollout` the model generated one. A
line of phase "start" begins a process at step `step`. report/run_clock.py writes the file.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bigmodel_jax.report.progress import duration

log = logging.getLogger(__name__)

FILE = "goodput.jsonl"
START = "start"
# Parts of the wall time, with the names that readers see.
PARTS = {
    "steps": "steps",
    "compile": "compiling",
    "restore": "restoring",
    "save": "saving",
    "eval": "evaluating",
    "lost": "lost work",
    "down": "down",
    "data": "waiting for data",
    "rollout": "rollouts",
    "other": "start-up and other",
}
WAITS = ("data", "rollout")  # parts of the time in steps in which a batch was awaited or generated
PHASES = {START, "steps", "compile", "restore", "save", "eval", *WAITS, "other"}  # phases that a line may have
LARGEST = 2**53  # larger numbers in a line are neither times nor steps


class Line(NamedTuple):
    """One stretch of time. It is a tuple to save memory, since a long run has hundreds of thousands
    of lines.
    """

    time: int
    phase: str
    step: int
    data: int = 0
    rollout: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """Milliseconds of a run's wall time by part, in the order of PARTS.

    The parts add up to the wall time exactly. starts: how many processes the run has had. since:
    the step at which the record begins; 0: the beginning of the run.
    """

    parts: dict[str, int]
    starts: int
    since: int

    @property
    def wall(self) -> int:
        """Milliseconds of wall time."""
        return sum(self.parts.values())

    @property
    def goodput(self) -> float:
        """The share of wall time in steps that count, 0 to 1."""
        return self.parts["steps"] / self.wall if self.wall else 0.0

    def text(self) -> str:
        """The split in one line."""
        shown = (f"{PARTS[name]} {duration(ms / 1000)}" for name, ms in self.parts.items() if ms)
        since = f", recorded from step {self.since:,} on" if self.since else ""
        return f"Goodput {100 * self.goodput:.1f} % of {duration(self.wall / 1000)}{since}: {', '.join(shown)}"


def read(run_dir: Path) -> Split | None:
    """The split so far; None without a record.

    A line cut short by a kill is skipped.
    """
    path = Path(run_dir) / FILE
    if not path.is_file():  # reading a device or a pipe may never end
        return None
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:  # the report page works without the split
        log.warning("%s: %s; the wall time is not split", path, error.strerror)
        return None
    lines = [line for line in map(_line, texts) if line is not None]
    return split(lines) if lines else None


def _line(text: bytes) -> Line | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    line = Line(*(found.get(name) for name in ("time", "phase", "step")), *(found.get(name, 0) for name in WAITS))
    numbers = (line.time, line.step, line.data, line.rollout)
    # `type` is compared, because isinstance takes JSON's true and false for integers.
    whole = isinstance(line.phase, str) and all(type(n) is int and 0 <= n < LARGEST for n in numbers)
    return line if whole and line.phase in PHASES else None


def split(lines: list[Line]) -> Split:
    """The split of a record.

    The clocks of two machines may disagree. So a process that seems to start before its
    predecessor's last line counts as following it without a gap.
    """
    parts = dict.fromkeys(PARTS, 0)
    processes = list(_processes(lines))
    for before, process in itertools.pairwise(processes):
        parts["down"] += max(0, process[0].time - before[-1].time)
    for number, process in enumerate(processes):
        # Steps after the one at which a later process resumed were repeated, so they are lost work.
        kept = min((later[0].step for later in processes[number + 1 :]), default=LARGEST)
        for before, line in itertools.pairwise(process):
            for name, ms in _stretch(before, line, kept).items():
                parts[name] += ms
    return Split(parts, len(processes), processes[0][0].step)


def _processes(lines: list[Line]) -> Iterator[list[Line]]:
    """The lines of each process, with times that never decrease."""
    starts = [0, *(i for i, line in enumerate(lines) if i and line.phase == START), len(lines)]
    for first, last in itertools.pairwise(starts):
        times = itertools.accumulate((line.time for line in lines[first:last]), max)
        yield [line._replace(time=time) for line, time in zip(lines[first:last], times, strict=True)]


def _stretch(before: Line, line: Line, kept: int) -> dict[str, int]:
    """Milliseconds by part between two lines of a process.

    Steps count up to step `kept`.
    """
    whole = line.time - before.time
    if line.phase != "steps":
        return {line.phase: whole}
    # Waiting is subtracted first. The rest is split into counted and lost steps.
    data = min(line.data, whole)
    rollout = min(line.rollout, whole - data)
    whole -= data + rollout
    # If no step ended in a stretch, the stretch belongs to the step that ends next.
    low, high = before.step, max(line.step, before.step + 1)
    counted = round(whole * min(1.0, max(0.0, (kept - low) / (high - low))))
    return {"steps": counted, "data": data, "rollout": rollout, "lost": whole - counted}
