"""A job of two processes that the real mpirun starts: they find each other by its environment
alone."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import jobs
import runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no Open MPI: apt-get install openmpi-bin"),
]


def losses(run_dir):
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in records if "loss" in r}


def test_mpirun_starts_the_run_of_one_process(tmp_path):
    config = runs.write(tmp_path)
    command = [sys.executable, str(jobs.ROOT / "launch.py"), "train", str(config), "--train.steps", "4"]
    command += ["--eval.baselines", "False", "--eval.sample.max_tokens", "1"]
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    found = {}
    for name, start, devices in (("one", [], 4), ("two", mpirun, 2)):
        env = dict(os.environ, JAX_NUM_CPU_DEVICES=str(devices))
        run = subprocess.run(
            [*start, *command, "--run_dir", str(tmp_path / name)], env=env, capture_output=True, text=True, timeout=400
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.count("Report: ") == 1  # one process speaks
        found[name] = losses(tmp_path / name)
    assert found["one"].keys() == found["two"].keys()
    assert len(found["two"]) == 4
    np.testing.assert_allclose(list(found["two"].values()), list(found["one"].values()), rtol=1e-5)
