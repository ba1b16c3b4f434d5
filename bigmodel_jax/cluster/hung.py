"""Which process of a job hangs, and which one is slow: judged from what each one says of itself. Pure functions."""

import dataclasses
import statistics
from collections.abc import Sequence

from bigmodel_jax.core.pulse import DEVICES, STEP, Beat

SILENT_SECONDS = 90.0  # a process whose watching thread has said nothing for so long stands still, in whatever phase
SLOW_STEPS = 10  # fewer say nothing of a process's usual step
SLOW_SHARE = 0.1  # of a step: what a process must cost all others to be named as slow


@dataclasses.dataclass(frozen=True)
class Member:
    """One process, as process 0 knows it."""

    name: str  # "process 1 (pid 4711 on n2)"
    beat: Beat | None  # its last word; None before the first one
    silence: float = 0.0  # seconds since then

    @property
    def number(self) -> str:
        return self.name.split()[1]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The job hangs. `silent` are those that will not hear of it; `text` says who waits for whom."""

    silent: tuple[Member, ...]
    text: str


def judge(members: Sequence[Member], interval: float) -> Verdict | None:
    """None while all is well. `interval`: seconds between two words of a process.

    A process that says nothing hangs. Otherwise a step has to be overdue in every process, so that one that still
    evaluates, saves or compiles while the others wait for it is no fault.
    """
    silent = [m for m in members if m.silence > SILENT_SECONDS]
    if silent:
        return Verdict(tuple(silent), _line(members, silent, _silence(silent)))
    limits = [m.beat.limit for m in members if m.beat is not None]
    patience = max(2 * interval + 1, min(30.0, max(limits, default=0.0) / 2))  # a busy interpreter answers late
    silent = [m for m in members if m.silence > patience]
    awake = [m for m in members if m not in silent]
    if not awake or not all(m.beat is not None and m.beat.overdue for m in awake):
        return None
    limit = f"; the limit of a step is {max(m.beat.limit for m in awake):.0f} s (train.max_step_seconds)"
    if silent:
        return Verdict(tuple(silent), _line(members, silent, _silence(silent)) + limit)
    guilty = _behind(awake)
    if not guilty:
        step, seconds = awake[0].beat.step, min(m.beat.seconds for m in awake)
        text = f"step {step:,} was not done after {seconds:.0f} s: all processes wait for the devices, none is behind"
        return Verdict((), text + limit)
    said = "; ".join(
        f"{m.name} has been {m.beat.phase} in step {m.beat.step:,} for {m.beat.seconds:.0f} s" for m in guilty
    )
    return Verdict((), _line(members, guilty, said) + limit)


def _behind(members: Sequence[Member]) -> list[Member]:
    """Those that have not come to where the others wait; empty where all wait in one place."""
    busy = [m for m in members if m.beat.phase != DEVICES]
    last = min(m.beat.step for m in members)
    late = [m for m in members if m.beat.step == last]
    return busy or (late if len(late) < len(members) else [])


def _silence(silent: Sequence[Member]) -> str:
    return "; ".join(f"{m.name} has not answered for {m.silence:.0f} s{_last_place(m)}" for m in silent)


def _last_place(member: Member) -> str:
    beat = member.beat
    return f" (it was {beat.phase}, step {beat.step:,})" if beat and beat.phase in STEP else ""


def _line(members: Sequence[Member], guilty: Sequence[Member], said: str) -> str:
    others = [m for m in members if m not in guilty]
    if not others:
        return said
    numbers = ", ".join(m.number for m in others[:8]) + (f" and {len(others) - 8} more" if others[8:] else "")
    waits = f"process {numbers} waits" if len(others) == 1 else f"processes {numbers} wait"
    return f"{said}; {waits} for {'it' if len(guilty) == 1 else 'them'}"


def slow(members: Sequence[Member]) -> list[Member]:
    """Those whose own part of a step is above twice the median of all and above a tenth of the step.

    A process's own part is what it does before the devices wait for it. A slow device is not seen that way: every
    process waits for it in the same collective for the same time.
    """
    spoken = [m for m in members if m.beat is not None and m.beat.num >= SLOW_STEPS]
    if len(spoken) < 2:
        return []
    usual = statistics.median_low(m.beat.own for m in spoken)
    return [m for m in spoken if m.beat.own > 2 * usual and m.beat.own - usual > SLOW_SHARE * m.beat.whole]
