"""Decides which process of a job hangs or is slow, from the states that all report; pure
functions."""

import dataclasses
import statistics
from collections.abc import Sequence

from bigmodel_jax.core.pulse import DEVICES, STEP, Beat

SILENT_SECONDS = 90.0  # a process that reports nothing for so long hangs, whatever its phase
SLOW_STEPS = 10  # a process with fewer steps is not judged
SLOW_SHARE = 0.1  # the share of a step that a process must cost all others to be called slow


@dataclasses.dataclass(frozen=True)
class Member:
    """One process as process 0 knows it."""

    name: str  # "process 1 (pid 4711 on n2)"
    beat: Beat | None  # its last report; None before the first
    silence: float = 0.0  # seconds since the last report

    @property
    def number(self) -> str:
        return self.name.split()[1]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The finding that the job hangs; silent: the processes that report nothing; text: which
    process waits for which."""

    silent: tuple[Member, ...]
    text: str


def judge(members: Sequence[Member], interval: float) -> Verdict | None:
    """The verdict on a job; None if it does not hang.

    interval: seconds between two reports of a process. A process that reports nothing hangs. If all
    report, the job hangs only when the step is overdue in every process. A process may evaluate,
    save or compile while the others wait.
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
    """The processes that have not reached the point where the others wait.

    The result is empty if all wait there.
    """
    busy = [m for m in members if m.beat.phase != DEVICES]
    last = min(m.beat.step for m in members)
    late = [m for m in members if m.beat.step == last]
    # If all are in the same step and wait for the devices, none is behind.
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
    """The processes whose own part of a step exceeds twice the median, and a tenth of the step.

    A process's own part is the time before the devices wait for it. This cannot find a slow device,
    because every process waits for it equally long in the same collective.
    """
    spoken = [m for m in members if m.beat is not None and m.beat.num >= SLOW_STEPS]
    if len(spoken) < 2:
        return []
    # This is the lower median, so that the slower of two processes can stand out.
    usual = statistics.median_low(m.beat.own for m in spoken)
    return [m for m in spoken if m.beat.own > 2 * usual and m.beat.own - usual > SLOW_SHARE * m.beat.whole]
