"""Real processes of a job, one of which is stopped: it is named, all end with 75, and the run goes on from its last save."""

import os
import signal
import time

import pytest

import jobs
import runs

pytestmark = pytest.mark.slow

STEPS = 60
OPTIONS = ("--train.steps", STEPS, "--checkpoint.every", "5", "--checkpoint.keep", "50", "--train.max_step_seconds", "8")
OPTIONS += ("--train.batch_size", "12", "--eval.batch_size", "12")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("hung"))


def train(path, run_dir, count, *more):
    return jobs.job(count, "train", *(path, "--run_dir", run_dir) if path else (run_dir,), *map(str, OPTIONS), *more, devices=1)


def wait_for_step(job, run_dir, step):
    end = time.monotonic() + 400
    while time.monotonic() < end and all(p.poll() is None for p in job.processes):
        if (run_dir / "metrics.jsonl").exists() and max(runs.losses(run_dir), default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached\n{job.everything()}")


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
        said = [line for i in others for line in job.err(i).splitlines()]
        woken = job.err(stopped).splitlines()
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
