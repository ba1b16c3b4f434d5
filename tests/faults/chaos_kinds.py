"""The kinds of disturbances, and a run of so many of each: what `chaos.py` prints as a table."""

import contextlib
import itertools
import random
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import chaos_events
import chaos_runs
import chaos_signals
from chaos_result import COLUMNS, Result


class Kind(NamedTuple):
    """run: one job of up to so many events -> what came of it; most: events of one job."""

    title: str
    run: Callable[..., Result]
    most: int = 1


REAL = 0.25  # the share of signalled starts that are processes of their own
KINDS = {
    "signals": Kind(
        "signals (KILL, TERM, INT, STOP and CONT) to runs",
        lambda chaos, folder, draw, most: chaos_signals.signals(chaos.whole, chaos.commands, folder, draw, most, REAL),
        4,
    ),
    "damages": Kind(
        "damages of a run's folder and prepared data",
        lambda chaos, folder, draw, most: chaos_events.damages(chaos.whole, chaos.commands, folder, draw),
    ),
    "full_disks": Kind(
        "full disks and file limits",
        lambda chaos, folder, draw, most: chaos_events.full_disks(chaos.whole, chaos.commands, folder, draw),
    ),
    "starters": Kind(
        "two or three starts of one run",
        lambda chaos, folder, draw, most: chaos_events.starters(chaos.whole, chaos.commands, folder, draw),
    ),
}


class Chaos(NamedTuple):
    """What the events share."""

    seed: int
    folder: Path
    commands: chaos_runs.Commands
    whole: chaos_runs.Whole

    def one(self, kind: str, index: int, most: int = 0) -> Result:
        """One job, in a folder of its own, which stays where there is a fault."""
        folder = self.folder / f"{kind}_{index}"
        folder.mkdir()
        result = KINDS[kind].run(self, folder, random.Random(f"{self.seed} {kind} {index}"), most or KINDS[kind].most)
        result.faults = [(column, f"{kind}:{index}: {text}") for column, text in result.faults]
        if not result.faults:
            shutil.rmtree(folder)
        return result

    def all(self, kind: str, total: int, workers: int, told: Callable[[Result], None]) -> Result:
        """`total` events; a job that had room for fewer than it was given leaves them to a further one."""
        result, indices, most = Result(), itertools.count(), KINDS[kind].most
        with ThreadPoolExecutor(workers) as pool:
            jobs = {}
            while result.count < total:
                while len(jobs) < workers and (left := total - result.count - sum(jobs.values())) > 0:
                    jobs[pool.submit(self.one, kind, next(indices), min(most, left))] = min(most, left)
                done, _ = wait(jobs, return_when=FIRST_COMPLETED)
                for job in done:
                    del jobs[job]
                    told(job.result())
                    result += job.result()
        return result


@contextlib.contextmanager
def prepared(seed: int, folder: Path):
    """Yields the Chaos: a server of forks, and the run that nothing disturbs."""
    with chaos_runs.Commands(folder / "said") as commands:
        yield Chaos(seed, folder, commands, chaos_runs.undisturbed(commands, folder))


def table(results: dict[str, Result]) -> str:
    """Rows as docs/robustness.md has them."""
    lines = [f"| event | how many | {' | '.join(COLUMNS)} | refused in one line | resumed bit-identical |"]
    lines.append("|" + " --- |" * (len(COLUMNS) + 4))
    for kind, r in results.items():
        counts = [sum(column == name for column, _ in r.faults) for name in COLUMNS]
        resumed = f"{r.identical} of {r.compared}" if r.compared else "–"
        lines.append(f"| {KINDS[kind].title} | {' | '.join(map(str, (r.count, *counts, len(r.refused), resumed)))} |")
    return "\n".join(lines)
