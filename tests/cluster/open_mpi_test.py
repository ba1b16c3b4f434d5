"""A job of two processes that the real mpirun starts: they find each other by its environment
alone. train_test.py compares the losses of such a job with those of one process."""

import json
import os
import shutil
import subprocess
import sys

import pytest

import jobs
import runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no Open MPI: apt-get install openmpi-bin"),
]


def test_mpirun_starts_one_run_of_two_processes(tmp_path):
    run_dir = tmp_path / "run"
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
    command += [str(jobs.ROOT / "launch.py"), "train", str(runs.write(tmp_path)), "--run_dir", str(run_dir)]
    command += ["--train.steps", "2", "--eval.baselines", "False", "--eval.sample.prompt", ""]
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="2")
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("Report: ") == 1  # one process speaks
    assert json.loads((run_dir / "environment.json").read_text())["process_count"] == 2
    assert sorted(runs.losses(run_dir)) == [1, 2]
