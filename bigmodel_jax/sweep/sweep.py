"""Run a sweep from its first trial to its page, in one process or in several."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import TrialState

from bigmodel_jax import config_file
from bigmodel_jax.config import Config
from bigmodel_jax.report.page import build_report
from bigmodel_jax.sweep import groups as device_groups
from bigmodel_jax.sweep import space as spaces
from bigmodel_jax.sweep import study as studies
from bigmodel_jax.sweep.definition import Sweep, to_job
from bigmodel_jax.sweep.record import REASON, write_record
from bigmodel_jax.sweep.worker import work

BEST = "best.json"  # the config of the best trial; `train` accepts it


def search(sweep: Sweep, processes: int, groups: Sequence[str], say: Callable[[str], None]) -> Config:
    """Run the missing trials, write best.json, and return the best config.

    processes: how many train in parallel. groups: the devices of each process, where they share a
    machine's accelerators. Raises ValueError if no trial completed.
    """
    write_record(sweep, sweep.open())  # a mistake in the study is reported before any process starts
    if processes == 1 and not groups:
        work(sweep, say)
    else:
        _side_by_side(sweep, groups or [""] * processes, say)
    return finish(sweep, say)


def finish(sweep: Sweep, say: Callable[[str], None]) -> Config:
    """Write the record, best.json and the best trial's report. Return the best config."""
    study = sweep.open()
    write_record(sweep, study)
    trials = study.get_trials(deepcopy=False)
    if not any(trial.state is TrialState.COMPLETE for trial in trials):
        reasons = [trial.user_attrs.get(REASON, "") for trial in trials]
        raise ValueError(
            f"{sweep.run_dir}: none of the {len(trials)} trials completed; the first failure: {next(filter(None, reasons), '')}"
        )
    best = study.best_trial
    config = spaces.configured(sweep.config, studies.values_of(sweep.space, best.params))
    config_file.save(config, sweep.run_dir / BEST)
    folder = sweep.folder(best.number)
    if not (folder / "report.html").is_file():
        build_report([folder], folder / "report.html")
    say(f"Best: trial {best.number}, {sweep.search.metric} {best.value:.5g}; config: {sweep.run_dir / BEST}")
    return config


def _side_by_side(sweep: Sweep, groups: Sequence[str], say: Callable[[str], None]) -> None:
    """Run several processes that share the trials, and wait for all of them.

    If one dies, the others take over its trials. Raises ValueError with the first error message if
    trials remain.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(to_job(sweep)))
        children = [_start(folder, number, group) for number, group in enumerate(groups)]
        # A process whose output nobody reads would stop once its pipe is full.
        readers = [threading.Thread(target=_pass_on, args=(child, say), daemon=True) for child in children]
        try:
            for reader in readers:
                reader.start()
            codes = [child.wait() for child in children]
        except BaseException:
            for child in children:
                child.terminate()  # the process saves its trial, which the next start continues
            for child in children:
                child.wait()
            raise
        for reader in readers:
            reader.join()
        said = [(folder / f"{number}.err").read_text().strip() for number in range(len(children))]
    ended = [trial for trial in sweep.open().get_trials(deepcopy=False) if trial.state.is_finished()]
    failed = [
        f"{text.splitlines()[-1] if text else f'code {code}'}" for text, code in zip(said, codes, strict=True) if code
    ]
    # A process that died is no failure if the others finished its trials.
    if failed and len(ended) < sweep.trials:
        raise ValueError(f"{sweep.run_dir}: {len(failed)} of {len(children)} processes failed; the first: {failed[0]}")


def _start(folder: Path, number: int, group: str) -> subprocess.Popen:
    environment = os.environ | (device_groups.environment(group) if group else {})
    command = [sys.executable, "-m", "bigmodel_jax.sweep.worker", str(folder / "job.json"), group]
    with (folder / f"{number}.err").open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def _pass_on(child: subprocess.Popen, say: Callable[[str], None]) -> None:
    for text in child.stdout:
        say(text.rstrip())
