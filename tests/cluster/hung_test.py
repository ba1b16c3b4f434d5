"""Real processes of a job, one of which is stopped: it is named, all end with 75, and the run goes
on from its last save."""

import os
import signal
import time

import chex
import jax
import numpy as np
import pytest

import jobs
import runs
from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import sharding
from bigmodel_jax.training.state import abstract_state

# peers_test.py stops a process of three in the slow suite; faults/ resumes runs that ended so.
pytestmark = pytest.mark.exhaustive

OPTIONS = ("--checkpoint.every", "5", "--checkpoint.keep", "2", "--train.max_step_seconds", "8")
OPTIONS += ("--train.batch_size", "12", "--eval.batch_size", "12")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("hung"))


def train(path, run_dir, count, *more):
    return jobs.job(count, "train", path, "--run_dir", run_dir, *OPTIONS, *more, devices=1)


def wait_for_step(job, run_dir, step):
    end = time.monotonic() + 400
    while time.monotonic() < end and all(p.poll() is None for p in job.processes):
        if (run_dir / "metrics.jsonl").exists() and max(runs.losses(run_dir), default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached\n{job.everything()}")


def parameters(path, run_dir):
    config = config_file.load(path)
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:1])
    with store.open_store(run_dir / "checkpoints", config.checkpoint) as saves:
        restored = store.restore(saves, abstract_state(config, mesh))
    return restored.step, jax.tree.map(np.asarray, restored.state)


def end_of(job, others, seconds=150):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(job.processes[i].poll() is None for i in others):
        time.sleep(0.1)
    return [job.processes[i].poll() for i in others]


@pytest.mark.parametrize(("stopped", "count"), [(1, 3), (0, 2)])
def test_a_stopped_process_is_named_and_the_run_goes_on_from_its_save(path, tmp_path, stopped, count):
    run_dir, others = tmp_path / "run", [i for i in range(count) if i != stopped]
    with train(path, run_dir, count, "--train.steps", "100000") as job:
        wait_for_step(job, run_dir, 12)
        pid = job.processes[stopped].pid
        os.kill(pid, signal.SIGSTOP)
        assert end_of(job, others) == [75] * len(others), job.everything()
        os.kill(pid, signal.SIGCONT)
        assert end_of(job, [stopped]) == [75], job.everything()
        said = [line for i in others for line in jobs.ours(job.err(i))]
        woken = jobs.ours(job.err(stopped))
        assert "Traceback" not in job.everything()
        log = (run_dir / "log.txt").read_text()
        pids = [p.pid for p in job.processes]
    assert len(said) == 1, said
    assert said[0].startswith(f"error: process {stopped} (pid {pid} on ")
    assert "has not answered for " in said[0]
    assert said[0].endswith("all processes were ended; the same command resumes the run")
    assert str(run_dir / "log.txt") in said[0]
    assert said[0] in log
    assert len(woken) == 1, woken
    assert woken[0].startswith(f"error: process {stopped} (pid {pid} on ")
    assert "did not answer, and the others have ended without it" in woken[0]
    for i in others:
        assert f"stacks of process {i} (pid {pids[i]} on " in log
    assert log.count('training/loop.py", line') >= len(others)
    if count > 2:
        return
    # --- what was saved is resumed, and the hang leaves no trace in the numbers
    steps = str(max(int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit()) + 3)
    for folder in (run_dir, tmp_path / "whole"):
        with train(path, folder, count, "--train.steps", steps) as job:
            assert job.wait() == [0] * count, job.everything()
    assert runs.losses(run_dir) == runs.losses(tmp_path / "whole")
    assert parameters(path, run_dir)[0] == int(steps)
    chex.assert_trees_all_equal(parameters(path, run_dir), parameters(path, tmp_path / "whole"))
