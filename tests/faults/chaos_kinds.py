"""The kinds of disturbances, and a run of so many of each: what `chaos.py` prints as a table."""

import contextlib
import random
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import chaos_events
import chaos_inputs
import chaos_mutations
import chaos_runs
import chaos_signals
from chaos_result import COLUMNS, Result


class Kind(NamedTuple):
    """run: (chaos, job) -> what came of it; most: events of one job at most."""

    title: str
    run: Callable[..., Result]
    most: int = 1


REAL = 0.25  # the share of signalled starts that are processes of their own
KINDS = {
    "signals": Kind(
        "signals (KILL, TERM, INT, STOP and CONT) to runs",
        lambda chaos, job: chaos_signals.signals(chaos.whole, chaos.commands, job.folder, job.draw, job.most, REAL),
        4,
    ),
    "damages": Kind(
        "damages of a run's folder and prepared data",
        lambda chaos, job: chaos_events.damages(chaos.whole, chaos.commands, job.folder, job.draw),
    ),
    "full_disks": Kind(
        "full disks and file limits",
        lambda chaos, job: chaos_events.full_disks(chaos.whole, chaos.commands, job.folder, job.draw),
    ),
    "starters": Kind(
        "two or three starts of one run",
        lambda chaos, job: chaos_events.starters(chaos.whole, chaos.commands, job.folder, job.draw),
    ),
    "bad_inputs": Kind(
        "bad inputs: command lines, configs, data files",
        lambda chaos, job: chaos_inputs.refuse(chaos.eight, chaos.inputs, job.index),
    ),
    "config_mutations": Kind(
        "mutations of a run's config.json",
        lambda chaos, job: chaos_mutations.mutations("config_mutations", chaos.seed, job.index, job.most),
        100,
    ),
    "gguf_mutations": Kind(
        "mutations of a GGUF's metadata",
        lambda chaos, job: chaos_mutations.mutations("gguf_mutations", chaos.seed, job.index, job.most),
        100,
    ),
    "template_mutations": Kind(
        "mutations of chat templates",
        lambda chaos, job: chaos_mutations.mutations("template_mutations", chaos.seed, job.index, job.most),
        100,
    ),
}


class Job(NamedTuple):
    """index: number of the job's first event among all of its kind; most: the largest number of
    events."""

    index: int
    most: int
    folder: Path
    draw: random.Random


class Chaos(NamedTuple):
    """What the events share. whole, eight, inputs: None where no kind needs them."""

    seed: int
    folder: Path
    commands: chaos_runs.Commands
    whole: chaos_runs.Whole | None
    eight: chaos_runs.Commands | None
    inputs: list | None

    def one(self, kind: str, index: int, most: int = 0) -> Result:
        """One job, in a folder of its own, which stays where there is a fault."""
        folder = self.folder / f"{kind}_{index}"
        folder.mkdir()
        draw = random.Random(f"{self.seed} {kind} {index}")
        result = KINDS[kind].run(self, Job(index, most or KINDS[kind].most, folder, draw))
        result.faults = [(column, f"{kind}:{index}: {text}") for column, text in result.faults]
        if not result.faults:
            shutil.rmtree(folder)
        return result

    def all(self, kind: str, total: int, workers: int, told: Callable[[Result], None]) -> Result:
        """`total` events; a job that had room for fewer than it was given leaves them to a further
        one."""
        result, next_index, most = Result(), 0, KINDS[kind].most
        with ThreadPoolExecutor(workers) as pool:
            jobs = {}
            while result.count < total:
                while len(jobs) < workers and (left := total - result.count - sum(jobs.values())) > 0:
                    size = min(most, left)
                    jobs[pool.submit(self.one, kind, next_index, size)] = size
                    next_index += size
                done, _ = wait(jobs, return_when=FIRST_COMPLETED)
                for job in done:
                    del jobs[job]
                    told(job.result())
                    result += job.result()
        return result


RUNS = {"signals", "damages", "full_disks", "starters"}


@contextlib.contextmanager
def prepared(seed: int, folder: Path, kinds: Collection[str]) -> Iterator[Chaos]:
    """Yields the Chaos for these kinds: servers of forks, the run that nothing disturbs, the bad
    inputs."""
    with contextlib.ExitStack() as stack:
        commands = stack.enter_context(chaos_runs.Commands(folder / "said"))
        whole = chaos_runs.undisturbed(commands, folder) if RUNS & set(kinds) else None
        eight = inputs = None
        if "bad_inputs" in kinds:
            inputs = chaos_inputs.make(folder / "inputs")
            random.Random(seed).shuffle(inputs)
            eight = stack.enter_context(chaos_runs.Commands(folder / "said_of_inputs", devices=8))
        yield Chaos(seed, folder, commands, whole, eight, inputs)


def table(results: dict[str, Result]) -> str:
    """Rows as docs/robustness.md has them."""
    lines = [f"| event | how many | {' | '.join(COLUMNS)} | refused in one line | resumed bit-identical |"]
    lines.append("|" + " --- |" * (len(COLUMNS) + 4))
    for kind, r in results.items():
        counts = [sum(column == name for column, _ in r.faults) for name in COLUMNS]
        resumed = f"{r.identical} of {r.compared}" if r.compared else "–"
        lines.append(f"| {KINDS[kind].title} | {' | '.join(map(str, (r.count, *counts, len(r.refused), resumed)))} |")
    return "\n".join(lines)
