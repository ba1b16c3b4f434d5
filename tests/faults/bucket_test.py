"""Runs in a bucket, against a server of this machine: the same as on a disk, killed, held by
another, and without an answer."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import mirror, paths
from bigmodel_jax.training.holder import Holder
from bigmodel_jax.training.saved import load_weights
from bucket_server import BUCKET

TIMES = ("seconds", "wait", "per_second", "mfu")


def _config(folder: Path) -> Path:
    """The tiny run's config file with its texts in the bucket, one of them by a pattern."""
    text = runs.write(folder).read_text()
    for name, pattern in (("train.txt", "tr*.txt"), ("validation.txt", "validation.txt")):
        paths.write(f"gs://{BUCKET}/texts/{name}", (folder / name).read_bytes())
        (folder / name).unlink()
        text = text.replace(str(folder / name), f"gs://{BUCKET}/texts/{pattern}")
    (folder / "remote.py").write_text(text)
    return folder / "remote.py"


def _records(run_dir: Path) -> list[dict]:
    """What metrics.jsonl says, without what a clock has measured."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines]


def _weights(run_dir: Path) -> dict:
    import jax

    from bigmodel_jax.core import params, sharding

    config = config_file.load(mirror.fetched(str(run_dir)) if paths.is_remote(run_dir) else run_dir)
    mesh = sharding.make_mesh(config.parallel, jax.devices())
    tree, step = load_weights(config, mirror.folder(str(run_dir)), mesh)
    assert step == 12
    return {path: bytes(memoryview(sharding.to_host(x)).cast("B")) for path, x in params.paths(tree).items()}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_and_ends_as_one_on_a_disk_does(served, tmp_path, capsys):
    bucket = tmp_path / "served" / BUCKET
    train = ["train", str(_config(tmp_path)), "--eval.baselines", "False", "--run_dir"]
    killed = runs.start(*train, f"gs://{BUCKET}/runs/a", devices=8)
    saves = bucket / "runs" / "a" / "checkpoints"
    while not (saves / "8").is_dir():  # a save that has begun, and may not be whole
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    shutil.rmtree(tmp_path / "cache" / "gs")  # as on another machine: the bucket alone is left
    (bucket / "runs" / "a" / "holder.json").unlink(missing_ok=True)
    cli.main([*train, str(tmp_path / "disk")])
    capsys.readouterr()
    cli.main([*train, f"gs://{BUCKET}/runs/a"])
    said = capsys.readouterr().out
    assert "Resuming at step" in said
    assert f"Report: gs://{BUCKET}/runs/a/report.html" in said
    assert _records(bucket / "runs" / "a") == _records(tmp_path / "disk")
    assert _weights(f"gs://{BUCKET}/runs/a") == _weights(tmp_path / "disk")
    assert (bucket / "runs" / "a" / "report.html").is_file()
    assert not (bucket / "runs" / "a" / "holder.json").exists()


def test_another_process_that_counts_holds_the_run(served, tmp_path, monkeypatch):
    from bigmodel_jax.training import bucket_hold

    monkeypatch.setattr(bucket_hold, "LOOK_SECONDS", 0.01)
    here = mirror.folder(f"gs://{BUCKET}/run")
    here.mkdir(parents=True)
    name = {"host": "other", "pid": 7, "since": "2026-01-01 00:00:00", "id": "other"}
    counts = iter(range(100))
    monkeypatch.setattr(bucket_hold.paths, "read", lambda path: json.dumps({**name, "beat": next(counts)}).encode())
    with Holder(here) as hold, pytest.raises(ValueError, match="is in use: process 7 on other, started 2026-01-01"):
        hold.take()


def test_a_holder_that_counts_no_more_is_followed_and_stops_when_it_comes_back(served, tmp_path, monkeypatch):
    from bigmodel_jax.training import bucket_hold

    monkeypatch.setattr(bucket_hold, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(bucket_hold, "LOOK_SECONDS", 0.01)
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "first"))
    first = Holder(_copy())
    first.take()
    monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "second"))
    with Holder(_copy()) as second:
        second.take()
        second.check()
        with pytest.raises(ValueError, match="has taken the run; this process stops without a save"):
            first.check()
        first.__exit__(None)
        second.check()  # the first has left the second's name alone
    assert not (tmp_path / "served" / BUCKET / "run" / "holder.json").exists()


def _copy() -> Path:
    here = mirror.folder(f"gs://{BUCKET}/run")
    here.mkdir(parents=True)
    return here


def test_what_is_uploaded_and_what_a_start_finds(served, tmp_path):
    bucket, here = tmp_path / "served" / BUCKET / "run", _copy()
    (here / "log.txt").write_text("one\n")
    (here / "config.json").write_text("{}")
    (here / "holder.json").write_text("")
    mirror.push(here)
    assert sorted(p.name for p in bucket.iterdir()) == ["config.json", "log.txt"]
    (here / "log.txt").write_text("one\ntwo\n")  # a process wrote another line before it was killed
    (here / "config.json").write_text('{"changed": 1}')
    (here / "stray").write_text("")
    mirror.pull(here)
    assert (here / "log.txt").read_text() == "one\ntwo\n"
    assert (here / "config.json").read_text() == "{}"
    assert not (here / "stray").exists()
    (here / "config.json").unlink()
    mirror.push(here)
    assert sorted(p.name for p in bucket.iterdir()) == ["log.txt"]
    assert (bucket / "log.txt").read_text() == "one\ntwo\n"


def test_a_save_without_its_mark_is_none(served, tmp_path):
    for name in ("4/commit_success.txt", "4/meta/data.json", "8/meta/data.json"):
        paths.write(f"gs://{BUCKET}/run/checkpoints/{name}", b"{}")
    saves = store.open_store(mirror.folder(f"gs://{BUCKET}/run") / "checkpoints", config_file.Config.checkpoint)
    assert store.steps(saves) == [4]


@pytest.mark.slow
def test_a_server_that_stops_is_one_line_and_the_saved_steps_stay(served, tmp_path, monkeypatch, capsys):
    import gcsfs.retry

    from bigmodel_jax.checkpoint import bucket as of_bucket

    async def at_once(seconds: float) -> None:
        pass

    monkeypatch.setattr(of_bucket, "RETRIES", {"max_retries": 1})
    monkeypatch.setattr(gcsfs.retry.asyncio, "sleep", at_once, raising=False)
    bucket = tmp_path / "served" / BUCKET
    config, save = _config(tmp_path), store.save

    def stopping(saves, step, *args, **kwargs):
        save(saves, step, *args, **kwargs)
        store.wait(saves)
        served.stop()

    monkeypatch.setattr(store, "save", stopping)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(config), "--run_dir", f"gs://{BUCKET}/runs/a"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stopped.value.code == 2
    assert len(said) == 1
    assert f"gs://{BUCKET}/runs/a" in said[0]
    assert "the object store does not answer, or refuses" in said[0]
    assert [p.parent.name for p in bucket.glob("runs/a/checkpoints/*/commit_success.txt")] == ["4"]
