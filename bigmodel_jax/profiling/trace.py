"""Read a profiler trace: what ran on one device, at which time, and the interval of the profiled
steps.
"""

import bisect
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

MARK = "bigmodel_jax profiled steps"  # the annotation around the profiled steps
_SKIPPED = ("end: ", "ThreadpoolListener", "$")


class Executed(NamedTuple):
    """One execution of an operation; times in nanoseconds.

    op: its name in the program's text. program: the program's name. number: the trace's number of
    the program, which tells it from others of that name. run: which execution of the program it
    belongs to.
    """

    start: float
    end: float
    op: str
    program: str
    number: int
    run: int


class Trace(NamedTuple):
    """The operations that one device executed, and the interval of the profiled steps.

    Times are in nanoseconds.
    """

    executed: list[Executed]
    start: float
    end: float
    device: str


def newest(folder: Path) -> Path:
    """The newest trace below a folder. Raises FileNotFoundError if there is none."""
    found = sorted(folder.glob("**/*.xplane.pb"))
    if not found:
        raise FileNotFoundError(2, "the profiler has left no trace there", str(folder))
    return found[-1]


def read(path: Path) -> Trace:
    """Read a trace file. Raises ValueError if it lacks the annotation of the profiled steps."""
    with warnings.catch_warnings():
        # Reading an event's stats makes JAX warn about its own type.
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        devices = sorted((p for p in planes if p.name.startswith("/device:") and list(p.lines)), key=lambda p: p.name)
        hosts = [p for p in planes if p.name.startswith("/host:CPU")]
        marks = [e for plane in hosts for line in plane.lines for e in line.events if e.name == MARK]
        if not marks:
            raise ValueError(f"{path}: the trace does not hold the annotation of the profiled steps")
        executed = _of_accelerator(devices[0]) if devices else [e for plane in hosts for e in _of_host(plane)]
    name = devices[0].name.removeprefix("/device:") if devices else "CPU:0"
    return Trace(executed, marks[0].start_ns, marks[0].start_ns + marks[0].duration_ns, name)


def _of_host(plane: Any) -> list[Executed]:
    """Operations of this process's first CPU device, from all its threads."""
    found = []
    for line in plane.lines:
        for event in line.events:
            if event.duration_ns <= 0 or event.name.startswith(_SKIPPED):
                continue
            facts = dict(event.stats)
            if "hlo_op" in facts:
                # Virtual CPU devices share the threads, so an event's own number of its device
                # tells them apart.
                found.append((int(facts.get("device_ordinal", 0)), _executed(event, facts)))
    first = min((device for device, _ in found), default=0)
    return [one for device, one in found if device == first]


def _of_accelerator(plane: Any) -> list[Executed]:
    """Operations of an accelerator.

    A GPU kernel names its operation among its stats. A TPU has one line of operations and one of
    programs.
    """
    lines = {line.name: line for line in plane.lines}
    if "XLA Ops" in lines:
        modules = sorted((e.start_ns, e.name.partition("(")[0]) for e in lines["XLA Modules"].events)
        starts = [start for start, _ in modules]
        found = []
        for event in lines["XLA Ops"].events:
            # A TPU's operations do not name their program, so the program that began last is taken.
            at = bisect.bisect_right(starts, event.start_ns) - 1
            op = re.match(r"%?([\w.\-]+)", event.name)
            facts = {"hlo_op": op[1] if op else event.name, "hlo_module": modules[max(at, 0)][1], "run_id": at}
            found.append(_executed(event, facts))
        return found
    streams = [line for name, line in lines.items() if name.startswith("Stream")]
    found = [(event, dict(event.stats)) for line in streams for event in line.events]
    return [_executed(event, facts if "hlo_op" in facts else {"hlo_op": event.name}) for event, facts in found]


def _executed(event: Any, facts: dict[str, Any]) -> Executed:
    return Executed(
        event.start_ns,
        event.start_ns + event.duration_ns,
        str(facts["hlo_op"]),
        str(facts.get("hlo_module", "")),
        int(facts.get("program_id", 0)),
        int(facts.get("run_id", 0)),
    )
