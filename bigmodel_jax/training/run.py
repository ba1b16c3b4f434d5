"""A run from its config to its last line: the checks and resources around the training loop."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from bigmodel_jax.checkpoint import store
from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import mirror, processes, pulse, sharding
from bigmodel_jax.core.terminal import make_console
from bigmodel_jax.data.text.text import tokenize_together
from bigmodel_jax.profiling import recorder
from bigmodel_jax.report.run_clock import RunClock
from bigmodel_jax.report.stages import Stages
from bigmodel_jax.training import constants, epochs, fits, holder, loop, provenance, reference, run_folder
from bigmodel_jax.training.beginning import (
    already_complete,
    already_stopped,
    begin,
    check_tokenizers,
    open_data,
    resume,
)
from bigmodel_jax.training.checks import check_data, check_processes, check_rows, check_spikes, check_trains
from bigmodel_jax.training.early_stopping import Judge, Patience
from bigmodel_jax.training.ending import check_endings
from bigmodel_jax.training.set_evaluations import open_sets
from bigmodel_jax.training.shared_programs import OwnPrograms

log = logging.getLogger("bigmodel_jax")


def train(
    config: Config,
    run_dir: Path,
    stages: Stages | None = None,
    *,
    began: float | None = None,
    source: Path | None = None,
    accept: Sequence[str] = (),
    programs: OwnPrograms = OwnPrograms(),
    judge: Judge = lambda *_: "",
    page: bool = True,
    profile_alone: bool = False,
) -> dict[str, float]:
    """Trains until `train.steps`, from the folder's last save. Returns the last evaluation's
    scalars.

    source: the file that the config was read from.
    accept: "data" or "code", if these may have changed since the run's last start.
    began: when the process started, in seconds since 1970; None: now.
    programs: provides the compiled programs.
    judge: called after each evaluation. Returns why the run ends there, or "".
    page: whether to draw the run's page at its end.
    profile_alone: ends the run after the steps of `train.profile`, by raising Profiled.

    A user's mistake raises a one-line ValueError or OSError. Earlier saves stay. If there are
    several processes, all train, and only the first one writes and prints.
    """
    stages = stages or Stages(make_console(quiet=not processes.first()))
    console = stages.console
    validate(config, jax.device_count())
    check_processes(config)
    check_spikes(config)
    check_trains(config)
    # These contexts close in reverse order. The saves are on disk before the hold on the folder
    # ends, and the bucket (`mirror`) gets the last files after that.
    with (
        mirror.kept(run_dir) if processes.first() else contextlib.nullcontext(),
        run_folder.logging_to(run_dir / "log.txt") as start_log,
        RunClock(run_dir, began) as wall,
        holder.Holder(run_dir) as hold,
        store.open_store(run_dir / "checkpoints", config.checkpoint) as saves,
    ):
        # --- checks that need no change to the run's folder
        run_folder.check(run_dir, config)
        # An existing folder is taken before it is read, so that no other process changes it.
        if run_dir.is_dir() and processes.first():
            hold.take()
        mesh = sharding.make_mesh(config.parallel)
        last = -1 if (found := store.latest_step(saves)) is None else found
        newest = store.open_local(saves, run_dir, mesh)
        if newest > last:
            run_folder.check(run_dir, config, newest)
        fits.check_weights(config, mesh)
        if newest >= 0:
            constants.references(run_dir)  # raises if another run that this one refers to has changed
        facts = provenance.check(config, run_dir, resumes=newest >= 0, source=source, accept=accept)
        stages.begin("Preparing data")
        tokenize_together(config.data)
        # Process 0 prepares the data first. The other processes then find it in the cache.
        batches, validation = processes.in_turn("data", lambda: open_data(config, mesh))
        config = epochs.resolve(config, len(batches.rows))
        if newest > config.train.steps:
            raise ValueError(f"train.steps = {config.train.steps} is below step {newest}, where this run stands")
        recorder.check(config, run_dir, max(newest, 0))
        check_rows(config, batches.rows)
        check_data(config)
        check_tokenizers(config)
        check_endings(config)
        log.info("data opened")
        beside = reference.find(config, mesh, run_dir, resumes=newest >= 0, console=console)
        if beside.weights:
            batches, validation = open_data(config, mesh, beside.data)
        sets = open_sets(config, mesh, run_dir, resumes=newest >= 0, console=console)

        # --- the state: restored or fresh
        stages.begin("Building the model")
        patience = Patience.of(config)
        with wall.phase("restore" if newest >= 0 else "other"):
            found = resume(config, run_dir, mesh, saves, batches, patience) if newest >= 0 else None
            fresh = begin(config, mesh, console) if found is None else None
            state, fixed = found if fresh is None else (fresh.state, fresh.constants)
        start = int(state.step)
        if found is None:
            batches.seek(start)
        if start >= config.train.steps:
            stages.end()
            return already_complete(run_dir, config, console)
        if patience.is_over:
            stages.end()
            return already_stopped(run_dir, start, patience, console)
        run_folder.claim(run_dir, config, hold, saves, last)
        provenance.write(run_dir, facts)
        reference.keep(run_dir, beside)
        if fresh is not None:
            constants.keep(run_dir, config, fixed, fresh.places)
        else:
            constants.keep_repeated(run_dir, config, fixed)
        # From here on this process owns the folder, so the log may be written there.
        start_log()
        wall.open(start)
        if start and found is not None:
            log.info("resumed at step %d", start)
            console.print(f"Resuming at step {start:,}.")
        batches.enter(run_dir, fixed)
        run = loop.Run(
            config,
            run_dir,
            mesh,
            stages,
            hold,
            saves,
            batches,
            validation,
            sets,
            patience,
            wall,
            start,
            fixed,
            programs,
            judge,
            page,
            profile_alone,
        )
        limit, alone = config.train.max_step_seconds, jax.process_count() == 1
        with pulse.watched(limit, run_dir / "log.txt", alone=alone):
            return run.go(state)
