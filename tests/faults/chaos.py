"""Chaos in one command: seeded disturbances of runs, and what came of each, as one table.

    uv run --group dev python tests/faults/chaos.py --seed 0 --signals 300 --damages 300 \\
        --full_disks 40 --starters 40 --bad_inputs 250 --config_mutations 1000 \\
        --gguf_mutations 1000 --template_mutations 500

A kind that is not named is left out. `--only KIND:INDEX` repeats one job. Ctrl-C ends early, with
the table of what was done. The moments and the damages follow from the seed; what the machine was
doing at a moment does not.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]


def as_pytest_does() -> None:
    """Where modules are found, and JAX's environment: pyproject.toml and tests/conftest.py say it
    for pytest alone."""
    folders = ("", "tests", "tests/data", "tests/faults", "tests/parity", "tests/pretrained")
    sys.path[:0] = [str(ROOT / name) for name in folders]
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    import conftest  # noqa: F401


class Rate(TextColumn):
    """Events a minute."""

    def __init__(self):
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(f"{60 * task.speed:.0f}/min" if task.speed else "")


def progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    faults = TextColumn("{task.fields[faults]} faults")
    return Progress(
        TextColumn("{task.description}"), *columns, faults, console=Console(stderr=True), speed_estimate_period=300
    )


def arguments(kinds) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time")
    parser.add_argument("--folder", type=Path, help="where the runs live, and stay if they have a fault")
    parser.add_argument("--only", help="KIND:INDEX, one job again")
    for kind in kinds:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N")
    return parser.parse_args()


def all_kinds(chaos, totals: dict[str, int], workers: int, results: dict) -> None:
    """Runs them, adding to `results`; Ctrl-C ends them early."""
    with progress() as bar, contextlib.suppress(KeyboardInterrupt):
        for kind, total in totals.items():
            task = bar.add_task(kind, total=total, faults=0)

            def told(result, kind=kind, task=task) -> None:
                results[kind] = results[kind] + result if kind in results else result
                for column, text in result.faults:
                    bar.console.print(f"{column}: {text}", markup=False, highlight=False, soft_wrap=True)
                bar.update(task, advance=result.count, faults=len(results[kind].faults))

            chaos.all(kind, total, workers, told)


def main() -> None:
    import chaos_kinds

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    args = arguments(chaos_kinds.KINDS)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="chaos_"))
    folder.mkdir(parents=True, exist_ok=True)
    began, results = time.monotonic(), {}
    totals = {kind: getattr(args, kind) for kind in chaos_kinds.KINDS if getattr(args, kind)}
    kind, _, index = (args.only or "").partition(":")
    with chaos_kinds.prepared(args.seed, folder, [kind, *totals]) as chaos:
        if kind:
            results[kind] = chaos.one(kind, int(index))
        else:
            all_kinds(chaos, totals, args.workers, results)
    minutes = (time.monotonic() - began) / 60
    print(f"{time.strftime('%Y-%m-%d')}, seed {args.seed}, {os.cpu_count()} CPU cores, {minutes:.0f} minutes\n")
    print(chaos_kinds.table(results))
    faults = [f"{column}: {text}" for result in results.values() for column, text in result.faults]
    print("".join(f"\n{fault}\n" for fault in faults))
    if not faults and args.folder is None:
        shutil.rmtree(folder)
    sys.exit(bool(faults))


if __name__ == "__main__":
    as_pytest_does()
    main()
