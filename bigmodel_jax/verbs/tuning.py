"""The verbs `find-rate`, which suggests a learning rate, and `cross-validate`."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from bigmodel_jax import runtime
from bigmodel_jax.core import mirror
from bigmodel_jax.core.options import parse_known
from bigmodel_jax.core.ranges import Classes, Positive, Range, Seed
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.verbs.base import CONFIG, OfConfig, Verb, check_no_run, one_target, parse_config, run_dir_of, say

Steps = Annotated[int, Range("20 or more", 20)]


@dataclasses.dataclass(frozen=True)
class FindRate(OfConfig):
    """Options of `find-rate`, beside the fields of the config."""

    lowest: Positive = 1e-7  # the learning rate of the first step
    highest: Positive = 10.0  # the learning rate of the last step
    steps: Steps = 100  # steps of the test, each on another batch


@dataclasses.dataclass(frozen=True)
class CrossValidate(OfConfig):
    """Options of `cross-validate`, beside the fields of the config."""

    k: Classes = 5  # the number of folds
    metric: str = ""  # the metric to report; empty: checkpoint.best_metric, else eval/loss
    stratify: Literal["labels", "none"] = "labels"  # labels: each label is spread evenly over the folds
    together: str = ""  # a field of the records: records with equal values stay in one fold
    fold_seed: Seed = 0  # seed of the assignment of records to folds


def find_rate(args: Sequence[str]) -> None:
    """Runs the verb `find-rate`: runs a learning-rate range test and writes a page."""
    target, options = one_target("find-rate", args)
    given, run_dir = parse_config(FindRate(), target, options, "find-rate")
    run_dir = run_dir if given.run_dir else _beside(target, "rate")
    check_no_run(run_dir)
    runtime.keep_programs()
    from bigmodel_jax.sweep import rate_finder

    span = rate_finder.Span(given.lowest, given.highest, given.steps)
    console = make_console(highlight=False, soft_wrap=True)
    # The page's command repeats the options of the config.
    command = shlex.join([str(target), *parse_known(FindRate(), options, prog="launch.py find-rate")[1]])
    found = rate_finder.find_rate(given.config, span, run_dir, console, command)
    for text in rate_finder.lines(found):
        console.print(text, markup=False)
    console.print(f"Page: {mirror.address(run_dir / rate_finder.PAGE)}", markup=False)


def cross_validate(args: Sequence[str]) -> None:
    """Runs the verb `cross-validate`: trains once per fold and writes a page."""
    target, options = one_target("cross-validate", args)
    given, run_dir = parse_config(CrossValidate(), target, options, "cross-validate")
    run_dir = run_dir if given.run_dir else _beside(target, "folds")
    check_no_run(run_dir)
    from bigmodel_jax.config_checks import validate
    from bigmodel_jax.sweep.metric import judged_by

    validate(given.config)
    metric, direction = judged_by(given.config, given.metric)
    runtime.keep_programs()
    from bigmodel_jax.data.folded import Folds, counts
    from bigmodel_jax.report.fold_page import build_fold_page
    from bigmodel_jax.sweep import cross_validation as folds
    from bigmodel_jax.training.holder import Holder

    how = Folds(given.k, given.stratify == "labels", given.together, given.fold_seed)
    counts(folds.configured(given.config, how, 0).data)  # refuses data without such folds before a folder is made
    with Holder(run_dir) as hold:
        run_dir.mkdir(parents=True, exist_ok=True)
        hold.take()
        of = {"target": str(target), "source": target.resolve()}
        found = folds.cross_validate(given.config, how, metric, direction, run_dir, say, **of)
        page = build_fold_page(run_dir, run_dir / "folds.html")
    for text in folds.lines(found):
        say(text)
    say(f"Page: {mirror.address(page)}")


def _beside(target: Path, end: str) -> Path:
    name = run_dir_of(target)
    return name.with_name(f"{name.name}-{end}")


VERBS = {
    "cross-validate": Verb(
        cross_validate,
        "cross-validate CONFIG [--k 5]",
        "train k times, each fold of the data held out once",
        f"CONFIG        {CONFIG}\n"
        "--k           the number of folds; without it: 5\n"
        "--metric      such as eval/accuracy; without it: checkpoint.best_metric, or\n"
        "              eval/loss\n"
        "--stratify    labels (default): spreads each label evenly over the folds, where\n"
        "              records have one; none: assigns records at random\n"
        "--together    a field of the records, such as a patient or an author: records\n"
        "              with equal values stay in one fold\n"
        "--fold_seed   another number gives other folds; without it: 0\n"
        "--run_dir     the folder to write; without it: runs/<name>-folds\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "The same command continues after a stop or a kill. The folds are made from the\n"
        "training records; the source's own validation split is not used.",
        (
            "cross-validate configs/mnist_mlp.py --k 5",
            "cross-validate configs/linear_regression.py --k 10 --train.batch_size 397",
        ),
    ),
    "find-rate": Verb(
        find_rate,
        "find-rate CONFIG [--lowest RATE --highest RATE]",
        "suggest a learning rate, by a short range test",
        f"CONFIG        {CONFIG}\n"
        "--lowest      the learning rate of the first step; without it: 1e-7\n"
        "--highest     the learning rate of the last step; without it: 10\n"
        "--steps       20 steps or more, each on another batch; without it: 100\n"
        "--run_dir     where rate.html and rate.json go; without it: runs/<name>-rate\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "Learning rates of parameter groups keep their ratio to optim.lr. The test ends\n"
        "early where the smoothed loss is four times its least value.",
        (
            "find-rate configs/mnist_mlp.py",
            "find-rate configs/lm_tiny.py --lowest 1e-5 --steps 200 --train.batch_size 16",
        ),
    ),
}
