"""A real SLURM: a job of two nodes trains, gives way to another one, is requeued and resumes, as if
nothing had been."""

import json
import subprocess
import sys

import numpy as np
import pytest

import jobs
import runs
import slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.why_not()), reason=f"no SLURM here: {slurm.why_not()}")]

STEPS = 400
OPTIONS = ("--train.steps", str(STEPS), "--train.batch_size", "32", "--optim.lr", "1e-4", "--checkpoint.every", "0")
OPTIONS += ("--eval.baselines", "False", "--eval.sample.max_tokens", "1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def submit(cluster, *args: str) -> str:
    """What `launch.py submit --engine slurm` prints; the job's processes have two devices each."""
    command = [sys.executable, jobs.ROOT / "launch.py", "submit", "--engine", "slurm", *args]
    env = cluster.environment | {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_preempted_job_saves_is_requeued_and_ends_as_an_uninterrupted_run(cluster, tmp_path):
    path, run_dir = runs.write(tmp_path), tmp_path / "run"
    said = submit(cluster, path, "--nodes", "2", "--run", "--run_dir", run_dir, *OPTIONS)
    assert (run_dir / "job.sbatch").is_file()
    job = said.split("Submitted batch job ")[1].strip()
    cluster.wait(lambda: (run_dir / "metrics.jsonl").exists() and max(runs.losses(run_dir), default=0) >= 5, 300)
    # --- a job of a higher partition takes both nodes
    other = ("--partition=high", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/other.log")
    other = cluster.run("sbatch", "--parsable", *other, "--wrap", "sleep 1")
    cluster.wait(lambda: cluster.state(job)["Restarts"] == "1", 120)
    cluster.wait(lambda: cluster.state(other)["JobState"] == "COMPLETED", 60)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # it would wait for two minutes
    # --- and it goes on to its end
    cluster.wait(lambda: cluster.state(job)["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"), 300)
    log = (run_dir / f"slurm-{job}.log").read_text()
    assert cluster.state(job)["JobState"] == "COMPLETED", log
    (saved,) = [int(line.split("saved at step ")[1].split(";")[0]) for line in log.splitlines() if "saved at" in line]
    assert 5 <= saved < STEPS
    assert f"Resuming at step {saved}." in log
    assert log.count("submit: requeued") == log.count("Report: ") == 1
    assert json.loads((run_dir / "environment.json").read_text())["process_count"] == 2

    alone = runs.launch("train", path, "--run_dir", tmp_path / "alone", *OPTIONS)
    assert alone.returncode == 0, alone.stderr
    got, want = runs.losses(run_dir), runs.losses(tmp_path / "alone")
    assert list(got) == list(want) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-4)


def test_sbatch_itself_accepts_what_submit_writes(cluster, tmp_path):
    path = runs.write(tmp_path)
    options = ("--nodes", "2", "--time", "00:10:00", "--partition", "low", "--tasks_per_node", "2", "--sbatch=--nice=5")
    file = submit(cluster, path, "--run_dir", tmp_path / "run", *options).strip()
    assert not cluster.run("sbatch", "--test-only", file)  # it says when the job would start, on stderr
    assert "#SBATCH --nice=5" in (tmp_path / "run" / "job.sbatch").read_text()
