"""The verb `prune`, which makes a run's model sparse or smaller."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal

from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.core.options import parse
from bigmodel_jax.core.ranges import Count, CountOrZero, Positive, ProperShare
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.verbs.base import RUN, STEP, Verb, local, place, run_dir_of, split

SPARSE = ("magnitude", "wanda")  # kinds that set weights to zero; the others remove them


@dataclasses.dataclass(frozen=True)
class Prune:
    """Options of `prune`."""

    kind: Literal["magnitude", "wanda", "structured_layers", "mlp_channels"] = "magnitude"  # what is pruned
    sparsity: ProperShare | None = None  # the share that is pruned; None = 0.5, or the share of --pattern
    pattern: str = ""  # N:M, for magnitude and wanda: N of every M inputs stay
    curve: tuple[ProperShare, ...] = ()  # further sparsities that are evaluated and not kept
    targets: str = ""  # regular expression over whole paths of parameters, for magnitude and wanda
    heal: CountOrZero = 0  # training steps after pruning, at each sparsity
    lr: Positive | None = None  # the learning rate of these steps; None = a tenth of the run's
    calibration: Count = 8  # training batches on which inputs are measured
    metric: str = ""  # drawn on the page; empty: checkpoint.best_metric, else eval/loss
    step: str = ""  # the checkpoint: a step, or best; empty: the newest
    json: bool = False  # one JSON object instead of a table


def prune(args: Sequence[str]) -> None:
    """Runs the verb `prune`: writes the pruned run, and a page of metrics by sparsity."""
    targets, options = split(args)
    if len(targets) != 2:
        raise ValueError(f"prune: expected a run and a folder, got {targets}; launch.py prune --help shows how")
    run, folder = place("prune", targets[0]), local("prune", targets[1])
    from bigmodel_jax.core.sharding import ParallelConfig
    from bigmodel_jax.training import run_folder

    config, run_dir = run_folder.load(run), run_dir_of(run)

    # The class is declared here, because the default mesh is that of the run.
    @dataclasses.dataclass(frozen=True)
    class OnMesh(Prune):
        parallel: ParallelConfig = config.parallel

    given = parse(OnMesh(), options, prog="launch.py prune RUN FOLDER")
    sparsities = _sparsities(given)
    config = dataclasses.replace(config, parallel=given.parallel)
    runtime.keep_programs()
    from bigmodel_jax.compress.prune import Asked, prune_run
    from bigmodel_jax.core import files
    from bigmodel_jax.report.prune_page import build_prune_page

    same = {
        name: getattr(given, name) for name in ("kind", "pattern", "targets", "heal", "lr", "calibration", "metric")
    }
    with Stages(make_console(stderr=True)) as stages:
        record = prune_run(config, run_dir, folder, Asked(sparsities=sparsities, which=given.step, **same), stages)
    page = build_prune_page(record, folder / "prune.html")
    files.replace(folder / "prune.json", json.dumps(record, indent=1) + "\n")
    if given.json:
        print(json.dumps(record))
    else:
        make_console().print(_table(record))
        print(page)


def _sparsities(given: Prune) -> tuple[float, ...]:
    """The sparsities to evaluate, the one to keep last.

    Raises ValueError for options that contradict each other.
    """
    for name in ("pattern", "targets"):
        if (value := getattr(given, name)) and given.kind not in SPARSE:
            raise ValueError(f"--{name} = {value!r} goes with --kind magnitude and wanda, not with {given.kind}")
    if given.lr is not None and not given.heal:
        raise ValueError(f"--lr {given.lr} needs --heal N, the number of steps at that rate")
    if not given.pattern:
        kept = 0.5 if given.sparsity is None else given.sparsity
        return (*sorted(set(given.curve) - {kept}), kept)
    from bigmodel_jax.compress.prune_masks import parse_pattern

    share = parse_pattern(given.pattern).sparsity
    if given.curve or given.sparsity not in (None, share):
        option = f"--curve {given.curve}" if given.curve else f"--sparsity {given.sparsity}"
        raise ValueError(f"{option}: --pattern {given.pattern} already prunes {share:g} of the weights")
    return (share,)


def _table(record: dict[str, Any]) -> Table:
    key = record["metric"]
    table = Table("Sparsity", "Parameters", "Zeros", key.removeprefix("eval/"), *(["healed"] if record["heal"] else []))
    dense = record["dense"]
    table.add_row("0", f"{dense['parameters']:,}", f"{dense['share']:.1%}", _number(dense["scalars"].get(key)))
    for point in record["points"]:
        healed = [_number(point["healed"].get(key))] if "healed" in point else []
        table.add_row(
            f"{point['asked']:g}",
            f"{point['parameters']:,}",
            f"{point['share']:.1%}",
            _number(point["scalars"].get(key)),
            *healed,
        )
    return table


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


VERBS = {
    "prune": Verb(
        prune,
        "prune RUN FOLDER --kind wanda --sparsity 0.5",
        "make a run's model sparse, or smaller",
        f"RUN           {RUN}\n"
        "FOLDER        the new run's folder\n"
        "--kind        magnitude: the smallest weights of each matrix become zero\n"
        "              wanda: the same, by |w| times the norm of the input\n"
        "              structured_layers: removes the layers that change least\n"
        "              mlp_channels: removes the hidden channels that contribute least\n"
        "--sparsity    the share that is pruned; without it: 0.5\n"
        "--pattern     2:4, or another N:M: N of every M inputs of an output stay\n"
        "--curve       further sparsities that are evaluated and not kept: 0.3 0.7\n"
        "--targets     the matrices that become sparse, by a pattern over their paths;\n"
        "              without it: all but those of the vocabulary\n"
        "--heal        training steps after pruning; zeros stay zero\n"
        "--lr          the learning rate of these steps; without it: a tenth of the run's\n"
        "--calibration training batches on which inputs are measured\n"
        "--metric      drawn on the page; without it: checkpoint.best_metric, or eval/loss\n"
        f"{STEP}\n"
        "--parallel.X  another mesh than the run's\n"
        "--json        print one JSON object instead of a table",
        (
            "prune runs/lm_tiny runs/sparse_lm --kind wanda --heal 100",
            "prune runs/mnist_mlp runs/sparse --curve 0.5 0.7 0.9 --sparsity 0.95",
            "prune runs/lm_tiny runs/short --kind structured_layers --sparsity 0.25",
        ),
    ),
}
