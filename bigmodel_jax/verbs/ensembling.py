"""The verb `ensemble`, which combines several trained runs."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.core.options import parse
from bigmodel_jax.core.ranges import CountOrZero
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import Verb, local, local_page, split

WRITES = ("weights", "soup")  # the values of --how that write a run


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Options of `ensemble`."""

    how: Literal["predictions", "logits", "weights", "soup"] = "predictions"  # what is averaged
    run_dir: str = ""  # the new run's folder, for weights and soup
    last: CountOrZero = 0  # the members are this many newest checkpoints of a single run; 0 = off
    metric: str = ""  # compares the members; empty: checkpoint.best_metric, else eval/loss
    batches: CountOrZero = 0  # training batches for batch statistics; 0 = one pass over the training rows
    output: str = ""  # the page to write; its numbers go to a .json file beside it
    json: bool = False  # one JSON object instead of a table


def ensemble(args: Sequence[str]) -> None:
    """Runs the verb `ensemble`: evaluates members and their mean, and writes a page or a run."""
    targets, options = split(args)
    from bigmodel_jax.core.sharding import ParallelConfig
    from bigmodel_jax.ensemble.members import parallel_of

    # The class is declared here, because the default mesh is that of the first run.
    @dataclasses.dataclass(frozen=True)
    class OnMesh(Ensemble):
        parallel: ParallelConfig = parallel_of(targets)

    given = parse(OnMesh(), options, prog="launch.py ensemble RUN RUN ...")
    if (given.how in WRITES) != bool(given.run_dir):
        wants = "makes a run: name its folder" if given.how in WRITES else "makes no run; leave it out"
        raise ValueError(f"--run_dir = {given.run_dir!r}: --how {given.how} {wants}")
    if given.batches and given.how not in WRITES:
        raise ValueError(
            f"--batches {given.batches} is for --how weights and soup, whose batch statistics are recomputed"
        )
    run_dir = local("ensemble: --run_dir", given.run_dir) if given.run_dir else None
    default = run_dir / "ensemble.html" if run_dir else "ensemble.html"
    output = local_page("ensemble: --output", given.output or str(default))
    runtime.keep_programs()
    from bigmodel_jax.core import files
    from bigmodel_jax.ensemble.of_runs import Asked, make_ensemble
    from bigmodel_jax.report.ensemble_page import build_ensemble_page

    record = make_ensemble(targets, Asked(given.how, given.metric, given.last, given.batches, run_dir, given.parallel))
    page = build_ensemble_page(record, output)
    files.replace(output.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    if given.json:
        print(json.dumps(record))
    else:
        make_console().print(_table(record))
        print(page)


def _table(record: dict) -> Table:
    """Each member and the mean of all, by the metric that compares them and three more at most."""
    names = [record["metric"], *(name for name in record["scalars"] if name != record["metric"])][:4]
    table = Table("Member", *(name.removeprefix("eval/") for name in names))
    kept = {one["name"]: one["kept"] for one in record.get("order", ())}
    for one in record["members"]:
        mark = "" if one["name"] not in kept else " (in the soup)" if kept[one["name"]] else " (left out)"
        table.add_row(f"{one['name']}{mark}", *(_number(one["scalars"].get(name)) for name in names))
    table.add_row(f"mean: {record['how']}", *(_number(record["scalars"].get(name)) for name in names), style="bold")
    return table


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


VERBS = {
    "ensemble": Verb(
        ensemble,
        "ensemble RUN ... [--how soup --run_dir FOLDER]",
        "combine runs by predictions or weights",
        "RUN           a run's folder, RUN@STEP or RUN@best; two or more\n"
        "--how         predictions: averages probabilities (in a regression, numbers)\n"
        "              logits: averages logits\n"
        "              weights: makes a run with averaged weights (SWA, with one RUN)\n"
        "              soup: the same, but leaves out members that worsen the metric\n"
        "--run_dir     the new run's folder, for weights and soup\n"
        "--last        with a single RUN: its newest N checkpoints are the members\n"
        "--metric      compares members; without it: checkpoint.best_metric, or eval/loss\n"
        "--batches     training batches from which batch norm's statistics are computed\n"
        "              again; without it: one pass over the training rows\n"
        "--output      the page; without it: ensemble.html, here or in the new run's folder\n"
        "--parallel.X  another mesh than that of the first run\n"
        "--json        print one JSON object instead of a table",
        (
            "ensemble runs/seed0 runs/seed1 runs/seed2",
            "ensemble runs/seed0 runs/seed1 runs/seed2 --how soup --run_dir runs/soup",
            "ensemble runs/lm_tiny --last 5 --how weights --run_dir runs/averaged",
        ),
    ),
}
