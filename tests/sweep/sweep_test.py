"""Whole sweeps of small runs: what they leave, what a failed trial is, and what a kill changes."""

import json
import signal
import time
from pathlib import Path

import pytest
from grids import few
from optuna.trial import TrialState

from bigmodel_jax import config_file
from bigmodel_jax.config import field_of
from bigmodel_jax.sweep import space as spaces
from bigmodel_jax.sweep import sweep as sweeps
from bigmodel_jax.sweep import trial as trials
from bigmodel_jax.sweep import worker
from bigmodel_jax.sweep.definition import Sweep, of_job, to_job
from bigmodel_jax.sweep.space import choice
from bigmodel_jax.sweep.study import Search
from bigmodel_jax.training import fits
from chaos_runs import Commands

FILE = Path(__file__).with_name("small_sweep.py")


def sweep_of(folder, trials=3, space=None, **search) -> Sweep:
    config = config_file.load(FILE, ["--data.cache_dir", str(folder / "cache")])
    (folder / "sweep").mkdir(exist_ok=True)
    space = space or spaces.read(FILE, config)
    search = Search(**{"metric": "eval/loss", "direction": "minimize"} | search)
    return Sweep(config, FILE, space, search, folder / "sweep", "journal", trials)


@pytest.fixture
def fake(monkeypatch):
    """Runs that take no time: their losses are the distance of the rate from 0.01, halved by each
    evaluation."""
    seen = []

    def trained(config, folder, metric, programs, *, judge, source):
        seen.append(config)
        for n in (1, 2, 3):
            value = abs(config.optim.lr - 0.01) / 2**n
            if judge(2 * n, {metric: value}, n == 3):
                return None, ""
        return value, ""

    monkeypatch.setattr(worker, "check_start", lambda config: None)
    monkeypatch.setattr(trials, "trained", trained)
    monkeypatch.setattr(sweeps, "build_report", lambda *_: None)
    return seen


@pytest.mark.slow
def test_a_sweep_leaves_runs_a_record_and_the_best_config(tmp_path, monkeypatch):
    compiled, said = [], []
    compile_step = fits.compile_step
    monkeypatch.setattr(fits, "compile_step", lambda *args: compiled.append(1) or compile_step(*args))
    monkeypatch.setattr(sweeps, "build_report", lambda *_: None)
    sweep = sweep_of(tmp_path, 2)
    best = sweeps.search(sweep, 1, (), said.append)
    assert len(compiled) == 1, "rates and decays are numbers of one step"
    record = json.loads((sweep.run_dir / "sweep.json").read_text())
    for trial in record["trials"]:
        folder = sweep.folder(trial["number"])
        config = config_file.load(folder)
        assert {name: field_of(config, name) for name in sweep.space} == trial["values"]
        assert [p.name for p in (folder / "checkpoints").glob("[0-9]*")] == ["6"]
        assert [step for step, _ in trial["reports"]] == [2, 4, 6]
        assert trial["reports"][-1][1] == trial["value"]
    assert config_file.load(sweep.run_dir / "best.json") == best
    values = [trial["value"] for trial in record["trials"]]
    assert best == config_file.load(sweep.folder(values.index(min(values))))


def test_a_trial_that_fails_is_one_trial(tmp_path, fake, monkeypatch):
    trained = trials.trained

    def failing(config, folder, *args, **kwargs):
        return (None, "the run diverged") if folder.name == "0001" else trained(config, folder, *args, **kwargs)

    monkeypatch.setattr(trials, "trained", failing)
    sweep, said = sweep_of(tmp_path, 4), []
    sweeps.search(sweep, 1, (), said.append)
    record = json.loads((sweep.run_dir / "sweep.json").read_text())
    assert [trial["state"] for trial in record["trials"]] == ["complete", "fail", "complete", "complete"]
    assert record["trials"][1]["reason"] == "the run diverged"
    assert "failed: the run diverged" in said[1]


def test_a_sweep_without_one_good_trial_says_why(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(trials, "trained", lambda *_, **__: (None, "out of memory"))
    with pytest.raises(ValueError, match="none of the 2 trials completed; the first failure: out of memory"):
        sweeps.search(sweep_of(tmp_path, 2), 1, (), print)


def test_more_trials_are_added_to_those_that_are_there(tmp_path, fake):
    sweeps.search(sweep_of(tmp_path, 3), 1, (), print)
    sweeps.search(sweep_of(tmp_path, 5), 1, (), print)
    assert len(fake) == 5


def test_a_grid_is_tried_point_by_point(tmp_path, fake):
    space = {"optim.lr": choice(0.1, 0.01), "train.batch_size": choice(4, 8)}
    sweeps.search(sweep_of(tmp_path, 4, space, sampler="grid"), 1, (), print)
    assert [(c.optim.lr, c.train.batch_size) for c in fake] == [(0.1, 4), (0.1, 8), (0.01, 4), (0.01, 8)]


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_a_pruner_ends_bad_trials_and_no_complete_one(tmp_path, fake, pruner):
    sweep = sweep_of(tmp_path, 12, pruner=pruner, first_rung=2)
    sweeps.search(sweep, 1, (), print)
    found = sweep.open().trials
    assert {t.state for t in found} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert max(t.last_step for t in found if t.state is TrialState.PRUNED) < 6


def test_a_trial_whose_process_dies_each_time_is_given_up(tmp_path, fake, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt  # what no trial survives

    monkeypatch.setattr(trials, "trained", killed)
    sweep = sweep_of(tmp_path, 1)
    for _ in range(trials.MOST_STARTS):
        with pytest.raises(KeyboardInterrupt):
            worker.work(sweep, print)
    worker.work(sweep, print)
    (trial,) = sweep.open().trials
    assert (trial.state, trial.user_attrs["reason"]) == (
        TrialState.FAIL,
        "its process died 3 times after step 0, before it had saved anything more",
    )


def test_a_trial_that_another_process_trains_is_left_to_it(tmp_path, fake):
    sweep = sweep_of(tmp_path, 2)
    taken, hold = worker.claim(sweep, sweep.open())
    with hold:
        worker.work(sweep, print)
        assert [t.state for t in sweep.open().trials] == [TrialState.RUNNING, TrialState.COMPLETE]
    worker.work(sweep, print)
    assert sweep.open().trials[taken.number].state is TrialState.COMPLETE


def test_a_sweep_goes_to_another_process_as_json(tmp_path):
    sweep = sweep_of(tmp_path, 2, pruner="asha")
    assert of_job(json.loads(json.dumps(to_job(sweep)))) == sweep


@pytest.mark.slow
@pytest.mark.parametrize(("trials", "kills"), few([(6, (1, 3)), (16, (4, 11))], (6, (1, 3))))
def test_trials_killed_twice_find_what_they_would_have_found(tmp_path, trials, kills):
    """SIGKILL ends a sweep twice, in the middle of a trial. Every trial and the best config are the
    same to the last bit."""
    found = {}
    with Commands(tmp_path / "said") as commands:
        for name, starts in (("whole", ()), ("killed", kills)):
            folder = tmp_path / name
            command = ("sweep", FILE, "--trials", trials, "--run_dir", folder)
            command += ("--data.cache_dir", tmp_path / "cache", "--parallel.data", "1")
            for number in starts:
                started = commands.start(*command)
                while not (folder / "trials" / f"{number:04d}" / "metrics.jsonl").is_file():
                    assert started.poll() is None
                    time.sleep(0.02)
                started.send(signal.SIGKILL)
                started.wait()
            done = commands.run(*command)
            assert done.code == 0, done.err
            record = json.loads((folder / "sweep.json").read_text())
            without = [{k: v for k, v in t.items() if k != "seconds"} for t in record["trials"]]
            found[name] = without, (folder / "best.json").read_text()
    assert len(found["whole"][0]) == trials
    assert found["whole"] == found["killed"]
