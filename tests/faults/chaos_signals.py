"""Signals at moments of a run that are drawn from a seed: at any time, or in one part of it."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import chaos_runs
from chaos_result import Result, finish
from chaos_runs import Command, Commands, Ended, Whole

PROMPT = 60.0  # seconds in which a command that was told to end has ended; 4 of grace, a save, a busy machine


def rows_of(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _saving(run_dir: Path) -> bool:
    folder = run_dir / "checkpoints"
    return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))


# The part of a run -> whether it has begun. A few rows more than the last save are what a kill
# costs.
MOMENTS: dict[str, Callable[[Command, Path, random.Random], Callable[[], bool]]] = {
    "the start": lambda command, run_dir, draw: lambda: True,
    "data": lambda command, run_dir, draw: lambda: "Preparing data ..." in command.said(),
    "the state": lambda command, run_dir, draw: lambda: "Building the model ..." in command.said(),
    "the compiler": lambda command, run_dir, draw: lambda: "Compiling the step ..." in command.said(),
    "the steps": lambda command, run_dir, draw: _more_rows(run_dir, draw.randint(1, 12)),
    "an evaluation": lambda command, run_dir, draw: _more_rows(run_dir, draw.choice((8, 9, 17, 18))),
    "a save": lambda command, run_dir, draw: lambda: _saving(run_dir),
    "the report": lambda command, run_dir, draw: lambda: "Writing the report ..." in command.said(),
}
KINDS = {"KILL": 9, "TERM": 4, "INT": 4, "INT twice": 1, "STOP": 3}  # kind -> weight


def _more_rows(run_dir: Path, count: int) -> Callable[[], bool]:
    before = rows_of(run_dir)
    return lambda: rows_of(run_dir) >= before + count


def wait_for_moment(command: Command, run_dir: Path, draw: random.Random, whole: Whole) -> str:
    """Waits until a drawn moment; returns its name. A command that ends before it is not waited
    for."""
    end = time.monotonic() + chaos_runs.LIMIT
    while not command.ready() and command.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    if draw.random() < 0.4:
        name, delay, begun = "a time", draw.uniform(0, whole.seconds), lambda: True
    else:
        name = draw.choice(list(MOMENTS))
        begun, delay = MOMENTS[name](command, run_dir, draw), draw.choice((0.0, 0.0, draw.uniform(0, 0.4)))
    while not begun() and command.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    end = min(end, time.monotonic() + delay)
    while command.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    return name


def signals(whole: Whole, commands: Commands, folder: Path, draw: random.Random, most: int, real: float) -> Result:
    """One run that is signalled up to `most` times, and started again after each signal that ends
    it.

    real: the share of starts that are processes of their own.
    """
    result, run_dir, story = Result(), folder / "run", []
    while result.count < most:
        command = commands.start(*whole.train(run_dir), real=draw.random() < real)
        while result.count < most:
            kind = draw.choices(list(KINDS), KINDS.values())[0]
            moment = wait_for_moment(command, run_dir, draw, whole)
            if not command.send(getattr(signal, f"SIG{kind.split()[0]}")):
                break
            result.count += 1
            story.append(f"{kind} in {moment}")
            if kind != "STOP":
                if kind == "INT twice":
                    time.sleep(draw.choice((0.0, 0.05, 0.5)))
                    command.send(signal.SIGINT)
                break
            time.sleep(draw.uniform(0.1, 1.5))
            command.send(signal.SIGCONT)
        told = bool(story) and "STOP" not in story[-1]
        done = command.wait(PROMPT if told else chaos_runs.LIMIT)
        complete = "Report: " in done.out or " is complete" in done.out
        if not _ended_well(done, story, complete, result) or complete:
            break
    finish(whole, commands, run_dir, result, ", ".join(story))
    return result


def _ended_well(done: Ended, story: list[str], complete: bool, result: Result) -> bool:
    kind = story[-1].split()[0] if story else "STOP"
    what = f"{', '.join(story)} ({'complete' if complete else 'not complete'})"
    codes = {"KILL": (-signal.SIGKILL,), "TERM": (0,), "INT": (130,), "STOP": (0,)}[kind]
    if not result.ended(done, (*codes, 0) if complete else codes, what):
        return False
    if kind in ("TERM", "INT") and not complete and not any("interrupted by" in line for line in done.lines):
        result.fault("silent", f"{what}: no line")
        return False
    return True
