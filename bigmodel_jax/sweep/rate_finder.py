"""Run a learning-rate range test on a config, and write its record and page.

One compiled step serves all rates, since they are inputs of the step (training/shared_programs.py).
No checkpoint is saved.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bigmodel_jax.config import Config, SpikeConfig, field_of
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import files, sharding
from bigmodel_jax.data import make_iterator
from bigmodel_jax.data.experience import Experience
from bigmodel_jax.report.progress import Progress
from bigmodel_jax.report.rate_page import RECORD, build_rate_page
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.report.throughput import step_size
from bigmodel_jax.sweep import rate_curve
from bigmodel_jax.training import reference
from bigmodel_jax.training.beginning import begin
from bigmodel_jax.training.checks import check_data, check_rows
from bigmodel_jax.training.compiled import compile_programs
from bigmodel_jax.training.shared_programs import traceable

RATE = "optim.lr"
PAGE = "rate.html"


@dataclasses.dataclass(frozen=True)
class Span:
    """The rates of a test: lowest, highest, and in how many steps."""

    lowest: float
    highest: float
    steps: int


def find_rate(config: Config, span: Span, run_dir: Path, console: Console, command: str) -> dict[str, Any]:
    """Run the test, write rate.json and rate.html into run_dir, and return the record.

    command: the config and its options, as `train` takes them in a shell. Raises ValueError if the
    rates or the config cannot be tested, or if the loss never fell.
    """
    check(config, span)
    own = of_test(config, span.steps)
    validate(own, jax.device_count())
    fields = rate_fields(own)
    # All rates must be inputs of the compiled step. Otherwise every step would compile anew.
    if missing := set(fields) - set(traceable(own, tuple(fields))):
        raise ValueError(_untraceable(own, sorted(missing)))
    with Stages(console) as stages:
        tried, losses, ended = _measure(own, fields, span, run_dir, stages)
    found = rate_curve.suggest(tried, losses, span.steps) if len(tried) > 1 else None
    rate = found and found.rate
    record = {
        "name": run_dir.name,
        "command": command,
        "optimizer": config.optim.name,
        "batch_size": config.train.batch_size,
        "config_rate": config.optim.lr,
        **dataclasses.asdict(span),
        "rates": tried,
        "losses": losses,
        "smoothed": list(found.smoothed) if found else losses,
        "ended": ended,
        "rate": rate,
        "lowest_loss_rate": found and found.lowest,
        "steepest": found and found.steepest,
        "at_end": bool(found and found.at_end),
        "options": options(fields, rate) if rate else "",
        "changed": changed(config),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    files.replace(run_dir / RECORD, json.dumps(record, indent=1) + "\n")
    build_rate_page(record, run_dir / PAGE)
    if rate is None:
        raise ValueError(
            f"find-rate: the loss fell by no more than its noise between {span.lowest:g} and {span.highest:g}; see "
            f"{run_dir / PAGE}; give another --lowest or --highest, or more --steps"
        )
    return record


def lines(record: dict[str, Any]) -> list[str]:
    """The result in sentences for the terminal."""
    said = [f"{name} = {value!r} was not applied in the test" for name, value in record["changed"].items()]
    said += [f"The test ended: {record['ended']}."] if len(record["rates"]) < record["steps"] else []
    if record["at_end"]:
        said.append(f"The loss still fell at {record['rates'][-1]:.3g}; a higher --highest may find a larger rate.")
    said.append(
        f"The loss is lowest at {record['lowest_loss_rate']:.2g}, and falls most steeply at {record['steepest']:.2g}."
    )
    return [*said, f"Suggested: {record['options']}"]


# ------------------------------------------------------------ the config of a test


def check(config: Config, span: Span) -> None:
    """Raise ValueError for rates in the wrong order, or a config whose loss says nothing about
    rates.
    """
    if span.lowest >= span.highest:
        raise ValueError(f"--lowest {span.lowest:g} is not below --highest {span.highest:g}")
    if config.data.prompts:
        raise ValueError(
            f"find-rate: {type(config.data).__name__} gives prompts, and the loss of a policy gradient does not say how well a "
            "rate trains; search optim.lr with launch.py sweep and --metric eval/reward"
        )
    own = [n for n, group in enumerate(config.optim.groups) if group.lr]
    if own and not config.optim.lr:
        raise ValueError(
            f"optim.lr = 0 with optim.groups.{own[0]}.lr = {config.optim.groups[own[0]].lr:g}: the test keeps the ratios of "
            "the groups' rates to optim.lr, which must be above 0"
        )


def of_test(config: Config, steps: int) -> Config:
    """`config` at a constant rate, without anything that hides the effect of the rate.

    Warm-up, parameter average, spike handling and delayed unfreezing are off.
    """
    groups = tuple(dataclasses.replace(group, unfreeze=0.0) for group in config.optim.groups)
    steady = {"schedule": "constant", "warmup_steps": 0, "warmup_share": 0.0, "ema_decay": 0.0, "groups": groups}
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, **steady),
        train=dataclasses.replace(config.train, steps=steps, epochs=None, spikes=SpikeConfig()),
        report=dataclasses.replace(config.report, watch=0),
    )


def changed(config: Config) -> dict[str, Any]:
    """{field: value in the config} of the fields that the test changes."""
    names = ["schedule", "warmup_steps", "warmup_share", "ema_decay"]
    names += [f"groups.{n}.unfreeze" for n in range(len(config.optim.groups))]
    names = [f"optim.{name}" for name in names] + ["train.spikes.action"]
    own = of_test(config, 1)
    return {name: field_of(config, name) for name in names if field_of(config, name) != field_of(own, name)}


def rate_fields(config: Config) -> dict[str, float]:
    """{field of a rate: its ratio to optim.lr}. The rates of parameter groups rise in
    proportion.
    """
    own = {f"optim.groups.{n}.lr": group.lr for n, group in enumerate(config.optim.groups) if group.lr is not None}
    return {RATE: 1.0} | {name: rate / config.optim.lr if rate else 0.0 for name, rate in own.items()}


def options(fields: dict[str, float], rate: float) -> str:
    """Command-line options that make `train` use this rate."""
    return " ".join(f"--{name} {ratio * rate:.2g}" for name, ratio in fields.items())


def _untraceable(config: Config, missing: list[str]) -> str:
    if config.parallel.strategy == "pmap":
        return (
            "find-rate: parallel.strategy = 'pmap' takes no rate as a number of its step; give --parallel.strategy jit"
        )
    return (
        f"find-rate: {type(config.optim).__name__} decides in Python by {missing[0]}, so that one compiled step cannot serve "
        "all rates; compute with it in jax.numpy alone"
    )


# ------------------------------------------------------------ the steps


def _measure(config: Config, fields: dict[str, float], span: Span, run_dir: Path, stages: Stages):
    """(rates, losses, why the test ended) of the steps up to the end."""
    stages.begin("Preparing data")
    mesh = sharding.make_mesh(config.parallel)
    data = reference.find(config, mesh, run_dir, resumes=False, console=stages.console, splits=("train",)).data
    batches = config.data.experience(config, mesh) or make_iterator(
        data, batch_size=config.train.batch_size, seed=config.train.seed, mesh=mesh, rules=config.parallel.rules
    )
    check_rows(config, batches.rows)
    check_data(config)
    stages.begin("Building the model")
    fresh = begin(config, mesh, stages.console)
    batches.enter(run_dir, fresh.constants)
    tried, losses, ended = [], [], "all rates were tried"
    watch = rate_curve.Watch(span.steps)
    for rate, loss in _losses(config, fields, span, mesh, fresh, batches, stages):
        if ended_now := watch.ends(loss):
            ended = f"{ended_now} at {rate:.3g}"
        if np.isfinite(loss):
            tried.append(rate)
            losses.append(loss)
        if ended_now:
            break
    return tried, losses, ended


def _losses(config: Config, fields: dict, span: Span, mesh, fresh, batches: Experience, stages) -> Iterator:
    """Yield (rate, loss of the batch that is trained on at this rate) for each step."""
    state, constants = fresh.state, fresh.constants
    batch = batches.next(state)
    values = rate_curve.rates(span.lowest, span.highest, span.steps)
    numbers = [{name: np.float32(ratio * rate) for name, ratio in fields.items()} for rate in values]
    stages.begin("Compiling the step")
    step = compile_programs(config, mesh, state, batch, constants, numbers[0]).step
    size, unit = step_size(config.data, batch)
    stages.end()
    with Progress(span.steps, 0, stages.console, unit=unit) as progress:
        for n, (rate, given) in enumerate(zip(map(float, values), numbers, strict=True), 1):
            began = time.perf_counter()
            state, sums = step(state, batch, constants, given)
            # Fetch the next batch while the device computes this step.
            if n < span.steps:
                batch = batches.next(state)
            logged, loss = (sums[name].compute() for name in ("learning_rate", "loss"))
            check_logged(config, float(logged), rate)
            progress.update(n, loss=float(loss), tokens_per_second=size / (time.perf_counter() - began), lr=rate)
            yield rate, float(loss)


def check_logged(config: Config, logged: float, rate: float) -> None:
    """Raise ValueError if the optimizer does not use the rate that the test gives it."""
    if abs(logged - rate) > 1e-3 * rate:
        raise ValueError(
            f"find-rate: {type(config.optim).__name__} trains at {logged:.3g} where the test gives optim.lr = {rate:.3g}; a "
            "schedule of your own must follow optim.schedule = 'constant' without a warm-up"
        )
