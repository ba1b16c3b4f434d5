"""One process of a sweep: take trials until there are enough, and train each as a run."""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import optuna
from optuna.trial import TrialState

from bigmodel_jax import runtime
from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import interrupts, sharding
from bigmodel_jax.sweep import definition, groups
from bigmodel_jax.sweep import space as spaces
from bigmodel_jax.sweep import study as studies
from bigmodel_jax.sweep.definition import Sweep
from bigmodel_jax.sweep.record import REASON, line, write_record
from bigmodel_jax.sweep.trial import attempt
from bigmodel_jax.training.beginning import open_data
from bigmodel_jax.training.shared_programs import SharedPrograms
from bigmodel_jax.training.signals import Interrupted

CLAIMS = "claims"  # a folder with one file per trial, locked by the process that trains it


def work(sweep: Sweep, say: Callable[[str], None]) -> None:
    """Train trials until `sweep.trials` have ended or other processes hold the rest.

    say: prints one line. Raises ValueError if the config itself cannot be trained.
    """
    check_start(sweep.config)
    study, programs = sweep.open(), SharedPrograms(spaces.floats(sweep.space))
    turn = sweep.run_dir / f"{CLAIMS}.lock"
    while True:
        # The lock covers the choice of a trial, but not its training.
        with studies.locked(turn):
            found = claim(sweep, study)
        if found is None:
            return
        trial, hold = found
        with hold:
            state, value, reason = attempt(sweep, trial, programs)
            with studies.locked(turn):
                if reason:
                    trial.set_user_attr(REASON, reason)
                study.tell(trial, value, state)
                write_record(sweep, study)
        say(line(sweep, study.get_trials(deepcopy=False)[trial.number]))


def check_start(config: Config) -> None:
    """Raise ValueError if no trial could train.

    That is the case if the config is not valid on this machine or has no data.
    """
    validate(config, jax.device_count())
    open_data(config, sharding.make_mesh(config.parallel))


def claim(sweep: Sweep, study: optuna.Study) -> tuple[optuna.Trial, contextlib.ExitStack] | None:
    """(a trial, the lock on it), or None if no trial is left.

    Trials whose process has died come before new ones.
    """
    known = study.get_trials(deepcopy=False)
    for frozen in known:
        # A lock that can be taken shows that the trial's process has ended.
        if frozen.state is TrialState.RUNNING and (hold := _hold(sweep, frozen.number)):
            return studies.take(study, sweep.space, sweep.search, frozen), hold
    # A waiting trial has not begun, so its number is the next one.
    number = sum(trial.state is not TrialState.WAITING for trial in known)
    if number >= sweep.trials:
        return None
    # A trial that waits was queued before a kill, so its point of the grid is not queued again.
    if sweep.search.sampler == "grid" and number == len(known):
        study.enqueue_trial(spaces.grid(sweep.space)[number])
    hold = _hold(sweep, number)
    assert hold, "a trial that is not there has nobody"
    return studies.take(study, sweep.space, sweep.search), hold


def _hold(sweep: Sweep, number: int) -> contextlib.ExitStack | None:
    """Lock a trial until this process ends; None if another process has locked it."""
    folder = sweep.run_dir / CLAIMS
    folder.mkdir(exist_ok=True)
    file = os.open(folder / f"{number:04d}", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    hold = contextlib.ExitStack()
    hold.callback(os.close, file)
    return hold


def main(job: Path, group: str) -> None:
    """Run one process of a parallel sweep.

    job: the file written by `to_job`. group: the devices that the process must see; "" = any.
    """
    runtime.keep_programs()
    if group:
        groups.check_seen(group, jax.local_device_count())
    sweep = definition.of_job(json.loads(job.read_text()))
    work(sweep, lambda text: print(text, flush=True))


if __name__ == "__main__":
    interrupts.install()
    runtime.use_gpu_memory()
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except (ValueError, OSError, Interrupted) as error:
        sys.exit(" ".join(str(error).split()))
