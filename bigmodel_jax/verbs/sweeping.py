"""The verb `sweep`, which searches over hyperparameters and compares configs over seeds."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bigmodel_jax.core import mirror
from bigmodel_jax.core.options import Unnamed
from bigmodel_jax.core.ranges import Count, CountOrZero, Seed
from bigmodel_jax.verbs.base import Verb, check_no_run, local, run_dir_of, say, split


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Options of `sweep`, beside the fields of the config."""

    config: Unnamed
    trials: Count | None = None  # how many trials in all, earlier starts included; None: 20, or all of a grid
    sampler: Literal["tpe", "random", "grid"] = "tpe"  # how the next trial is chosen
    pruner: Literal["none", "median", "asha"] = "none"  # what ends bad trials early
    metric: str = ""  # compares trials; empty: checkpoint.best_metric, else eval/loss
    seed: Seed = 0  # seed of the sampler
    storage: Literal["journal", "sqlite"] = "journal"  # the format of the study's file
    processes: Count = 1  # trials that run at the same time, each in a process
    groups: tuple[str, ...] = ()  # the devices of each process, such as 0,1 2,3
    seeds: CountOrZero = 0  # seeds to compare the best config and the config itself with; 0: none
    run_dir: str = ""  # the folder to write; empty: runs/<name>-sweep


def sweep(args: Sequence[str]) -> None:
    """Runs the verb `sweep`: searches, compares over seeds, or both, and writes a page."""
    names, options = split(args)
    if not 1 <= len(names) <= 2:
        raise ValueError(
            f"sweep: expected one CONFIG, or two with --seeds, got {names}; launch.py sweep --help shows how"
        )
    targets = [local("sweep", name) for name in names]
    given = [_parse(target, options) for target in targets]
    run_dir = _run_dir(given[0], targets)
    check_no_run(run_dir)
    _check(given[0], targets)
    from bigmodel_jax.training.holder import Holder

    with Holder(run_dir) as hold:
        if len(targets) == 1:
            found = _search(given[0], targets[0], run_dir, hold)
            configs = {"config": given[0].config, "best": found} if given[0].seeds else {}
        else:
            configs = dict(zip("AB", (one.config for one in given), strict=True))
        if configs:
            _compare(configs, given[0], run_dir, hold)
        from bigmodel_jax.report.page import build_report

        page = build_report([run_dir], run_dir / "sweep.html")
    say(f"Page: {mirror.address(page)}")


def _parse(target: Path, options: Sequence[str]) -> Sweep:
    from bigmodel_jax import config as configs
    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.training import run_folder

    parsed = configs.parse(Sweep(run_folder.load(target)), options, prog=f"launch.py sweep {target}")
    validate(parsed.config)
    return parsed


def _run_dir(given: Sweep, targets: list[Path]) -> Path:
    if given.run_dir:
        return local("sweep: --run_dir", given.run_dir)
    names = [run_dir_of(target) for target in targets]
    end = "-sweep" if len(names) == 1 else f"-{names[1].name}-seeds"
    return names[0].with_name(f"{names[0].name}{end}")


def _check(given: Sweep, targets: list[Path]) -> None:
    if given.seeds == 1:
        raise ValueError("--seeds 1: a spread and a paired test take 2 seeds or more")
    if len(targets) == 2 and not given.seeds:
        raise ValueError(f"sweep: two configs, {targets[0]} and {targets[1]}, are compared over --seeds 2 or more")
    if len(targets) == 2:
        _check_unsearched(given)
    if given.groups and given.processes not in (1, len(given.groups)):
        raise ValueError(f"--processes {given.processes} with {len(given.groups)} --groups: each group has one process")
    if given.groups:
        _check_groups(given)
    if given.pruner != "none" and given.config.eval.every == 0:
        raise ValueError(f"--pruner {given.pruner} compares evaluations during the runs; eval.every = 0 makes none")


def _check_unsearched(given: Sweep) -> None:
    """Raises ValueError for an option of the search, since two configs are compared without one."""
    for name in ("trials", "sampler", "pruner", "seed", "storage", "processes", "groups"):
        value = getattr(given, name)
        if value != getattr(Sweep, name):
            shown = " ".join(value) if name == "groups" else value
            raise ValueError(
                f"--{name} {shown}: two configs are compared without a search; leave it out, or name one config"
            )


def _check_groups(given: Sweep) -> None:
    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.sweep import groups

    groups.check(given.groups)
    num = len(groups.names(given.groups[0]))
    try:
        validate(given.config, num)
    except ValueError as error:
        raise ValueError(f"--groups {' '.join(given.groups)}: each process has {num} devices; {error}") from None


def _check_given(given: Sweep, target: Path, space: dict) -> None:
    """Raises ValueError for an option that gives a searched field, since no trial would use it."""
    from bigmodel_jax.config import field_of
    from bigmodel_jax.training import run_folder

    own = run_folder.load(target)
    for name in space:
        # A comparison over seeds trains the config itself, with the value of the option.
        if not given.seeds and field_of(own, name) != field_of(given.config, name):
            raise ValueError(
                f"--{name} {field_of(given.config, name)}: SPACE searches this field; leave the option out"
            )


def _search(given: Sweep, target: Path, run_dir: Path, hold):
    """The best config of the search in `run_dir`. This process holds the folder from here on."""
    from bigmodel_jax.sweep import space as spaces
    from bigmodel_jax.sweep.metric import judged_by

    space = spaces.read(target, given.config)
    _check_given(given, target, space)
    metric, direction = judged_by(given.config, given.metric)
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("sweep needs the package optuna: uv sync --extra sweep")
    points = len(spaces.grid(space)) if given.sampler == "grid" else 0
    trials = min(given.trials or points, points) if points else given.trials or 20
    from bigmodel_jax import runtime
    from bigmodel_jax.sweep import sweep as sweeps
    from bigmodel_jax.sweep.definition import Sweep as Definition
    from bigmodel_jax.sweep.study import Search

    runtime.keep_programs()
    several = given.processes > 1 or len(given.groups) > 1
    every = max(given.config.eval.every, 1)
    search = Search(metric, direction, given.sampler, given.pruner, given.seed, every, several)
    _take(run_dir, hold)
    definition = Definition(given.config, target.resolve(), space, search, run_dir, given.storage, trials)
    return sweeps.search(definition, given.processes, given.groups, say)


def _compare(configs: dict, given: Sweep, run_dir: Path, hold) -> None:
    from bigmodel_jax import runtime
    from bigmodel_jax.sweep import seeds
    from bigmodel_jax.sweep.metric import judged_by

    metric, direction = judged_by(next(iter(configs.values())), given.metric)
    runtime.keep_programs()
    _take(run_dir, hold)
    for text in seeds.lines(seeds.compare(configs, given.seeds, metric, direction, run_dir, say)):
        say(text)


def _take(run_dir: Path, hold) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    hold.take()


VERBS = {
    "sweep": Verb(
        sweep,
        "sweep CONFIG [--trials N] [--seeds N]",
        "search a config's SPACE, or compare over seeds",
        "CONFIG        a Python file with get_config() and SPACE, the fields to search;\n"
        "              with two CONFIGs for --seeds, any configs that train takes\n"
        "--trials      trials in all, with those of earlier starts; without it: 20, or the\n"
        "              whole grid\n"
        "--sampler     tpe (default), random or grid\n"
        "--pruner      none (default), median or asha: ends bad trials at an evaluation\n"
        "--metric      such as eval/accuracy; without it: checkpoint.best_metric, or\n"
        "              eval/loss\n"
        "--seed        the sampler's seed\n"
        "--storage     journal (default) or sqlite: the format of the study's file\n"
        "--processes   trials that run at the same time, each in a process\n"
        "--groups      devices of each process: --groups 0,1 2,3\n"
        "--seeds       trains the best config and CONFIG itself with this many seeds: mean,\n"
        "              spread, paired tests; with two CONFIGs, only compares these two\n"
        "--run_dir     the folder to write; without it: runs/<name>-sweep\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "The same command continues a sweep that was stopped or killed.",
        (
            "sweep configs/mnist_mlp_sweep.py --trials 16",
            "sweep configs/mnist_mlp_sweep.py --pruner asha --eval.every 100 --processes 2",
            "sweep configs/mnist_mlp.py runs/mnist_mlp_sweep-sweep/best.json --seeds 5 --train.seed 100",
        ),
    ),
}
