"""The verb `profile`: traces a few steps of a config and writes a page of where their time went."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from bigmodel_jax import runtime
from bigmodel_jax.core import mirror
from bigmodel_jax.core.options import asks_for_help
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.verbs.base import CONFIG, OfConfig, Verb, one_target, parse_config, run_dir_of

SHOWN = 12  # modules in the table on the terminal


@dataclasses.dataclass(frozen=True)
class Profile(OfConfig):
    """Options of `profile`, beside the fields of the config."""

    steps: Count = 10  # steps that are traced
    warmup: CountOrZero = 5  # steps before the traced ones


def profile(args: Sequence[str]) -> None:
    """Runs the verb `profile`: trains a few steps, traces them, and prints and writes where time
    went.
    """
    began = time.time()
    with Stages(make_console(quiet=asks_for_help(args))) as stages:
        stages.begin("Importing packages")
        target, options = one_target("profile", args)
        given, run_dir = parse_config(Profile(), target, options, "profile")
        if not given.run_dir:
            run_dir = run_dir_of(target)
            run_dir = run_dir.with_name(f"{run_dir.name}-profile")
        config = _config(given, run_dir)
        runtime.keep_programs()
        from bigmodel_jax.profiling.recorder import Profiled
        from bigmodel_jax.report import profile_page
        from bigmodel_jax.training import run, run_folder

        run_folder.release(run_dir)  # removes what an earlier profile left there
        try:
            run.train(config, run_dir, stages, began=began, source=target, page=False, profile_alone=True)
        except Profiled:
            found = profile_page.read(run_dir)
    if found is None:
        raise ValueError(f"profile: {run_dir / 'log.txt'} says why there is no profile")
    for name, shown in (("kinds", len(found["kinds"])), ("modules", SHOWN)):
        _print(found, name, shown)
    make_console().print(profile_page.roofline_note(found), highlight=False)


def _config(given: Profile, run_dir: Path):
    """The config with the window of traced steps.

    `train.steps` stays that of the whole run, so that the learning-rate schedule is the same.
    Evaluations and saves are moved after the last step, which a profile never reaches.
    """
    from bigmodel_jax.training import epochs

    if given.config.train.profile:
        raise ValueError(
            f"train.profile = {given.config.train.profile!r} is for train; profile takes --warmup and --steps"
        )
    if any(mirror.origin(run_dir / "checkpoints").glob("[0-9]*")):
        raise ValueError(f"--run_dir {run_dir}: a run was saved there; a profile needs a folder of its own")
    config = epochs.resolve(given.config)
    last = given.warmup + given.steps
    steps = max(config.train.steps, last)
    report = dataclasses.replace(config.report, watch=0)
    train = dataclasses.replace(config.train, steps=steps, profile=f"{given.warmup}:{last}")
    saves = dataclasses.replace(config.checkpoint, every=steps, local_every=0)
    sets = tuple(dataclasses.replace(one, every=0) for one in config.eval.sets)
    every = steps if config.eval.every else 0
    evaluation = dataclasses.replace(config.eval, every=every, sets=sets, baselines=False)
    return dataclasses.replace(config, train=train, checkpoint=saves, eval=evaluation, report=report)


def _print(found: dict, name: str, shown: int) -> None:
    from bigmodel_jax.report import profile_page

    heads = profile_page.heads({"kinds": "Kind", "modules": "Module"}[name])
    table = Table(*heads[:1], title=f"Time of a step by {heads[0].lower()}", title_justify="left")
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for row in profile_page.rows(found, name)[:shown]:
        table.add_row(*row)
    make_console().print(table)


VERBS = {
    "profile": Verb(
        profile,
        "profile CONFIG [--steps 10] [--warmup 5]",
        "trace a few steps: time by module and kind",
        f"CONFIG        {CONFIG}\n"
        "--steps       steps that are traced; --warmup: steps before them\n"
        "--run_dir     where profile.html, profile.json and profile/ go; without it:\n"
        "              runs/<name>-profile. No checkpoint is saved\n"
        "--FIELD       any field of the config by its dotted name\n\n"
        "The page shows the time of a step by kind (products, attention, norms, copies,\n"
        "collectives, waiting) and by module, beside the roofline. XProf and Perfetto open\n"
        "the trace in profile/. `train --train.profile 100:110` traces steps of a run.",
        (
            "profile configs/lm_tiny.py",
            "profile configs/lm_tiny.py --steps 3 --warmup 2 --train.batch_size 8",
        ),
    ),
}
