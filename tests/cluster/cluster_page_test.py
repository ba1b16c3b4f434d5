"""The commands of docs/cluster.md run as they are written, with a small config and a free port."""

import re
import shlex
import subprocess
import sys

import pytest
from page_commands_test import commands
from page_stand_ins import make_stand_ins

import jobs
import runs
import slurm

SUBMIT, *PAIR = (command for command, _ in commands("docs/cluster"))


def launch(command: str) -> list:
    return [sys.executable, jobs.ROOT / "launch.py", *shlex.split(command)]


@pytest.mark.exhaustive  # train_test.py trains in four processes
def test_two_processes_by_hand_train_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, "docs/cluster")
    port = str(jobs.free_port())
    job = jobs.Job([launch(command.removesuffix(" &").replace("9911", port)) for command in PAIR], devices=2)
    try:
        assert job.wait() == [0, 0], job.everything()
    finally:
        job.kill()
    assert max(runs.losses(tmp_path / "runs/mnist_mlp")) == 100
    assert "mesh         data=4" in job.out(0)


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.why_not()), reason=f"no SLURM here: {slurm.why_not()}")
def test_slurm_takes_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stand_ins(tmp_path, "docs/cluster")
    (tmp_path / "slurm").mkdir()
    with slurm.cluster(tmp_path / "slurm") as cluster:
        done = subprocess.run(launch(SUBMIT), env=cluster.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        job = re.search(r"Submitted batch job (\d+)", done.stdout)[1]
        state = cluster.state(job)
        cluster.run("scancel", job)
    assert (state["NumNodes"], state["TimeLimit"]) == ("2", "04:00:00")
