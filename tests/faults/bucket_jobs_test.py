"""Runs in a bucket of several processes, and from other runs there; by hand, since each takes
several starts."""

import json
import shutil
import sys

import pytest

import runs
from bigmodel_jax import cli
from bigmodel_jax.cluster import join
from bigmodel_jax.cluster.place import ClusterConfig
from bigmodel_jax.core import mirror
from bucket_server import BUCKET
from jobs import ROOT, Job, free_port

FEW = ("--eval.baselines", "False", "--optim.schedule", "constant", "--checkpoint.every", "4")


def test_hosts_whose_caches_lie_elsewhere_agree_on_a_run_in_a_bucket(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(join.peers, "active", lambda: True)
    monkeypatch.setattr(join.peers, "agree", lambda facts, timeout: found.append(facts["run_dir"]))
    for cache in ("a", "b"):
        monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / cache))
        join.agree(ClusterConfig(), mirror.folder(f"gs://{BUCKET}/run"), 1)
    assert found == [f"gs://{BUCKET}/run"] * 2


@pytest.mark.exhaustive
def test_two_hosts_train_in_a_bucket_and_resume(served, tmp_path):
    config = runs.write(tmp_path)
    caches = [{"BIGMODEL_CACHE": str(tmp_path / f"cache{i}")} for i in range(2)]
    for steps in (6, 10):
        train = (sys.executable, ROOT / "launch.py", "train", config, "--run_dir", f"gs://{BUCKET}/job", *FEW)
        place = ("--cluster.coordinator", f"127.0.0.1:{free_port()}", "--cluster.num_processes", 2)
        commands = [(*train, "--train.steps", steps, *place, "--cluster.process_id", i) for i in range(2)]
        job = Job(commands, 1, caches)
        assert job.wait() == [0, 0], job.everything()
    assert "Resuming at step 6" in job.out(0)
    records = (tmp_path / "served" / BUCKET / "job" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(record)["step"] for record in records} == set(range(1, 11))


@pytest.mark.exhaustive
def test_adapters_lie_in_a_bucket_beside_their_base_there(served, tmp_path, capsys):
    config = runs.write(tmp_path)
    cli.main(["train", str(config), "--run_dir", f"gs://{BUCKET}/base", "--train.steps", "4", *FEW])
    adapted = ["train", str(runs.write_adapted(tmp_path, f"gs://{BUCKET}/base")), *FEW, "--run_dir"]
    cli.main([*adapted, f"gs://{BUCKET}/adapted", "--train.steps", "4"])
    shutil.rmtree(tmp_path / "cache" / "gs")  # another machine would have no copies
    mirror._sent.clear()
    mirror.fetched.cache_clear()
    cli.main([*adapted, f"gs://{BUCKET}/adapted", "--train.steps", "8"])
    cli.main([*adapted, str(tmp_path / "disk"), "--train.steps", "8"])
    assert runs.losses(tmp_path / "served" / BUCKET / "adapted") == runs.losses(tmp_path / "disk")
    said = json.loads((tmp_path / "disk" / "constants.json").read_text())["sources"]
    assert [source["folder"] for source in said] == [f"gs://{BUCKET}/base/checkpoints"]
    capsys.readouterr()
