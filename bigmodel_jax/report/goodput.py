"""Where the wall time of a run went, all its restarts included, from the record that its processes leave.

The record, goodput.jsonl, has one line for each stretch of time: {"time", "phase", "step", "data", "rollout"}. The process
was in `phase` from the time of the line before to `time` (milliseconds since 1970), when `step` steps were done. For `data`
milliseconds of that the device had nothing to do and waited for a batch; for `rollout` milliseconds the weights made one. A
line of phase "start" begins a process, at step `step`. report/run_clock.py writes it.
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
WAITS = ("data", "rollout")  # what a part of the time in steps may be: what the time of an `Experience` is for
PHASES = {START, "steps", "compile", "restore", "save", "eval", *WAITS, "other"}  # that a line may have
LARGEST = 2**53  # of a line's numbers; more is no time and no step


class Line(NamedTuple):
    """One stretch of time, as the record has it; a long run has hundreds of thousands."""

    time: int
    phase: str
    step: int
    data: int = 0
    rollout: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """Milliseconds of a run's wall time by part, in the order of PARTS; they add up to the wall time exactly.

    starts: processes that the run has had. since: the step at which the record begins (0: the run's own beginning).
    """

    parts: dict[str, int]
    starts: int
    since: int

    @property
    def wall(self) -> int:
        return sum(self.parts.values())

    @property
    def goodput(self) -> float:
        """The share of the wall time in steps that count, 0 to 1."""
        return self.parts["steps"] / self.wall if self.wall else 0.0

    def text(self) -> str:
        """The split in one line."""
        shown = (f"{PARTS[name]} {duration(ms / 1000)}" for name, ms in self.parts.items() if ms)
        since = f", recorded from step {self.since:,} on" if self.since else ""
        return f"Goodput {100 * self.goodput:.1f} % of {duration(self.wall / 1000)}{since}: {', '.join(shown)}"


def read(run_dir: Path) -> Split | None:
    """The split so far; None for a run without a record. A line that was cut by a kill is left out."""
    path = Path(run_dir) / FILE
    if not path.is_file():  # a device or a pipe may never end
        return None
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:  # the page does without it
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
    whole = isinstance(line.phase, str) and all(type(n) is int and 0 <= n < LARGEST for n in numbers)
    return line if whole and line.phase in PHASES else None


def split(lines: list[Line]) -> Split:
    """The split of a record. A process that starts before the one before has ended, by its clock, follows it at once."""
    parts = dict.fromkeys(PARTS, 0)
    processes = list(_processes(lines))
    for before, process in itertools.pairwise(processes):
        parts["down"] += max(0, process[0].time - before[-1].time)
    for number, process in enumerate(processes):
        # What was done beyond the step at which some later process began was done again.
        kept = min((later[0].step for later in processes[number + 1 :]), default=LARGEST)
        for before, line in itertools.pairwise(process):
            for name, ms in _stretch(before, line, kept).items():
                parts[name] += ms
    return Split(parts, len(processes), processes[0][0].step)


def _processes(lines: list[Line]) -> Iterator[list[Line]]:
    """The lines of each process; its clock never goes back."""
    starts = [0, *(i for i, line in enumerate(lines) if i and line.phase == START), len(lines)]
    for first, last in itertools.pairwise(starts):
        times = itertools.accumulate((line.time for line in lines[first:last]), max)
        yield [line._replace(time=time) for line, time in zip(lines[first:last], times, strict=True)]


def _stretch(before: Line, line: Line, kept: int) -> dict[str, int]:
    """Milliseconds by part between two lines of a process whose steps count up to step `kept`."""
    whole = line.time - before.time
    if line.phase != "steps":
        return {line.phase: whole}
    data = min(line.data, whole)
    rollout = min(line.rollout, whole - data)
    whole -= data + rollout
    # A stretch in which no step ended is a part of the next one.
    low, high = before.step, max(line.step, before.step + 1)
    counted = round(whole * min(1.0, max(0.0, (kept - low) / (high - low))))
    return {"steps": counted, "data": data, "rollout": rollout, "lost": whole - counted}
