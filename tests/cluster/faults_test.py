"""What breaks a job breaks it whole, within seconds, with one line; and what it has saved is
resumed."""

import os
import signal
import time

import numpy as np
import pytest

import jobs
import runs

pytestmark = pytest.mark.slow

LONG = ("--train.steps", "100000", "--checkpoint.every", "0", "--train.batch_size", "12", "--eval.batch_size", "12")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("faults"))


def lines(job, count) -> list[str]:
    """All that the processes said on stderr."""
    return jobs.ours("".join(job.err(i) for i in range(count)))


def wait_for_step(job, run_dir, step):
    end = time.monotonic() + 400
    while time.monotonic() < end and all(p.poll() is None for p in job.processes):
        if (run_dir / "metrics.jsonl").exists() and max(runs.losses(run_dir), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached\n{job.everything()}")


@pytest.mark.slow
@pytest.mark.few("1")
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_takes_the_job_with_it_in_15_seconds_and_is_named(path, tmp_path, dies):
    with jobs.job(2, "train", path, "--run_dir", tmp_path / "run", *LONG) as job:
        wait_for_step(job, tmp_path / "run", 3)
        os.kill(job.processes[dies].pid, signal.SIGKILL)
        began = time.monotonic()
        codes = job.wait(60)
        assert time.monotonic() - began < 15
        assert codes == [-signal.SIGKILL if i == dies else 75 for i in range(2)], job.everything()
        (said,) = lines(job, 2)
        assert said.startswith(f"error: process {dies} (pid {job.processes[dies].pid} on ")
        assert "died" in said


@pytest.mark.exhaustive
def test_sigterm_to_one_saves_the_same_step_and_ends_all(path, tmp_path):
    """SLURM's own test sends the signal to all processes."""
    run_dir = tmp_path / "run"
    with jobs.job(2, "train", path, "--run_dir", run_dir, "--train.steps", "400", "--checkpoint.every", "0") as job:
        wait_for_step(job, run_dir, 3)
        os.kill(job.processes[1].pid, signal.SIGTERM)
        assert job.wait(60) == [0, 0], job.everything()
        (said,) = lines(job, 2)
    assert said.startswith("interrupted by SIGTERM; saved at step ")
    step = int(said.split("saved at step ")[1].split(";")[0])
    assert 3 <= step < 400
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [str(step)]
    # --- one process resumes it
    done = runs.launch("train", run_dir, "--train.steps", str(step + 5))
    assert done.returncode == 0, done.stderr
    assert f"Resuming at step {step}." in done.stdout
    whole = runs.launch("train", path, "--run_dir", tmp_path / "whole", "--train.steps", str(step + 5))
    assert whole.returncode == 0, whole.stderr
    got, want = runs.losses(run_dir), runs.losses(tmp_path / "whole")
    np.testing.assert_allclose([got[s] for s in sorted(want)], [want[s] for s in sorted(want)], rtol=1e-3)


@pytest.mark.parametrize(
    ("args", "extra", "says"),
    [
        (("--optim.lrr", "1"), None, ("Unrecognized options: --optim.lrr 1", "'--optim.lr'")),
        ((), ((), ("--optim.lr", "0.5")), ("differ: optim.lr is 0.5 in process 1 (pid", "0.003 in process 0")),
        pytest.param(
            (), ((), ("--optim.lrr", "1")), ("Unrecognized options: --optim.lrr 1",), marks=pytest.mark.exhaustive
        ),
    ],
)
def test_a_mistake_is_said_once_and_ends_all(path, tmp_path, args, extra, says):
    with jobs.job(2, "train", path, "--run_dir", tmp_path / "run", *args, extra=extra) as job:
        assert job.wait(120) == [2, 2], job.everything()
        (said,) = lines(job, 2)
        assert said.startswith("error: ")
        assert [part for part in says if part not in said] == [], said
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_does_not_answer_is_named_with_the_seconds_waited(path):
    address = f"127.0.0.1:{jobs.free_port()}"
    place = ("--cluster.coordinator", address, "--cluster.num_processes", "2", "--cluster.timeout", "3")
    done = runs.launch("train", path, *place, "--cluster.process_id", "1")
    assert done.returncode == 75
    (said,) = jobs.ours(done.stderr)
    assert said.startswith(f"error: cluster: the coordinator {address} could not be reached in 3 s: Connection refused")


def test_processes_that_never_come_are_missed(path):
    address = f"127.0.0.1:{jobs.free_port()}"
    place = ("--cluster.coordinator", address, "--cluster.num_processes", "2", "--cluster.timeout", "5")
    done = runs.launch("train", path, *place, "--cluster.process_id", "0")
    assert done.returncode == 75
    (said,) = jobs.ours(done.stderr)
    assert f"the 2 processes did not all join at {address} in " in said
