"""The trackers' own packages, without a network: W&B writes its offline log, MLflow its SQLite
file."""

import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax.config import ReportConfig
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.report.writers import open_writers

pytestmark = pytest.mark.slow

RECORDS = [(1, {"loss": np.float32(0.5), "eval/confusion": [[1]], "nan": math.nan}), (2, {"loss": 0.25})]


def run(name, run_dir, records=RECORDS, known=None):
    """One record in each of several processes' lives: a run, and the same run resumed."""
    for from_step, record in enumerate(records):
        report = ReportConfig(tensorboard=False, trackers=(name,))
        writers = open_writers(report, run_dir, from_step=from_step, config={"seed": 7}, known=known)
        writers.write(*record)
        writers.close()


def wandb_records(log):
    """The records of a short offline log: 7 bytes of header, then as in LevelDB checksum, length,
    kind and data each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = log.read_bytes()
    at = 7
    while at < len(data):
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        assert kind == 1, "a record in parts"
        yield Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length


@pytest.fixture
def wandb():
    package = pytest.importorskip("wandb", reason="uv sync --extra wandb")
    yield package
    package.teardown()  # it reads its environment once in a process


def test_wandb_offline(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("wandb", tmp_path / "first")
    wandb.teardown()  # the service writes its logs from a thread of its own, until it ends
    logs = sorted((tmp_path / "first" / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [record for log in logs for record in wandb_records(log)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {one.run_id for one in runs} == {"first"}
    assert {u.value_json for one in runs for u in one.config.update if u.key == "seed"} == {"7"}
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    rows = [{item.nested_key[0] if item.nested_key else item.key: item.value_json for item in row} for row in rows]
    assert [(int(row["_step"]), float(row["loss"])) for row in rows] == [(1, 0.5), (2, 0.25)]
    assert not {"nan", "eval/confusion"} & {name for row in rows for name in row}


def test_wandb_without_a_key_is_one_line(wandb, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match=r"^report\.trackers=wandb: [^\n]+$"):
        open_writers(ReportConfig(trackers=("wandb",)), tmp_path / "run")


def test_mlflow_in_a_file(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="uv sync --extra mlflow")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the config that it is given
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run("mlflow", tmp_path / "first")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = database.execute("select step, key, value from metrics order by step").fetchall()
        names = database.execute("select name, status from runs").fetchall()
    assert found == [(1, "loss", 0.5), (2, "loss", 0.25)]
    assert names == [("first", "FINISHED")]
    assert len(list(tmp_path.glob("mlruns/**/config.json"))) == 1


def test_mlflow_keeps_the_best_values_of_declared_metrics_over_a_resume(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="uv sync --extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    known = {"eval/loss": Metric("loss", better="less"), "eval/accuracy": Metric("accuracy", better="more")}
    values = ((0.5, 0.25), (0.25, 0.75), (1.0, 0.5))
    records = [(n, {"eval/loss": loss, "eval/accuracy": share, "loss": 1.0}) for n, (loss, share) in enumerate(values)]
    run("mlflow", tmp_path / "first", records, known | {"eval/rows": Metric("rows")})
    shown = mlflow.get_run((tmp_path / "first" / "mlflow_run_id").read_text()).data.metrics
    last = {"eval/loss": 1.0, "eval/accuracy": 0.5, "loss": 1.0}
    assert shown == last | {"best/eval/loss": 0.25, "best/eval/accuracy": 0.75}


def test_mlflow_leaves_nothing_outside_the_runs_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="uv sync --extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        run("mlflow", Path("runs") / name)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    for name in ("first", "second"):
        folder = tmp_path / "runs" / name / "mlflow"
        with sqlite3.connect(folder / "mlflow.db") as database:
            assert database.execute("select name, status from runs").fetchall() == [(name, "FINISHED")]
            assert len(database.execute("select value from metrics").fetchall()) == 2
        assert len(list(folder.glob("artifacts/**/config.json"))) == 1


def test_mlflow_without_its_server_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="uv sync --extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"^report\.trackers=mlflow: [^\n]+$"):
        open_writers(ReportConfig(trackers=("mlflow",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
