import json
import math
import resource
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel_jax.config import ReportConfig
from bigmodel_jax.report.tensorboard import framed
from bigmodel_jax.report.writers import MetricsWriter, open_writers, read_metrics


def write(run_dir, steps, from_step=0, **values):
    writer = MetricsWriter(run_dir, from_step=from_step, tensorboard=False)
    for step in steps:
        writer.write(step, {"loss": step / 2} | values)
    writer.close()


def test_what_is_written_is_read(tmp_path):
    write(tmp_path, [1, 2], **{"eval/confusion": [[3, 0], [1, 2]], "count": np.int32(4), "mean": jnp.float32(0.5)})
    first = {"step": 1, "loss": 0.5, "eval/confusion": [[3, 0], [1, 2]], "count": 4, "mean": 0.5}
    assert read_metrics(tmp_path) == [first, first | {"step": 2, "loss": 1.0}]


def test_a_record_is_on_disk_before_close(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.close()


def test_non_finite_values_stay_valid_json(tmp_path):
    write(tmp_path, [1], grad_norm=math.inf, more=[math.nan, 1.0])

    def refuse(token):
        raise AssertionError(token)

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (record["grad_norm"], record["more"]) == (None, [None, 1.0])


def test_a_cut_last_line_is_left_out_and_gone_after_resume(tmp_path):
    write(tmp_path, [1, 2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    write(tmp_path, [3], from_step=2)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


def test_resume_drops_the_steps_that_will_be_taken_again(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4], from_step=2, again=1.0)
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert ["again" in r for r in records] == [False, False, True, True]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_metrics(tmp_path)


def test_a_folder_without_metrics_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "nowhere")):
        read_metrics(tmp_path / "nowhere")


def test_tensorboard_gets_the_finite_scalars(tmp_path):
    for from_step in (0, 1):
        writer = MetricsWriter(tmp_path, from_step=from_step)
        writer.write(from_step + 1, {"loss": 1.0, "bad": math.nan, "eval/confusion": [[1]]})
        writer.close()
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events
    assert b"confusion" not in events
    assert b"bad" not in events


def events(folder):
    """Every event of every file, its checksums compared."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            record, content = content[: 16 + size], content[16 + size :]
            assert record == framed(record[12:-4])
            yield Event.FromString(record[12:-4])


def test_tensorboard_reads_what_was_written_and_hides_what_is_taken_again(tmp_path):
    writer = MetricsWriter(tmp_path, from_step=7)
    writer.write(8, {"loss": 1.5, "accuracy": 0.25})
    writer.close()
    version, restart, step = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (restart.step, restart.session_log.status) == (8, 1)
    assert (step.step, {v.tag: v.simple_value for v in step.summary.value}) == (8, {"loss": 1.5, "accuracy": 0.25})


def test_a_full_disk_ends_tensorboard_and_not_the_run(tmp_path, caplog):
    """Every file but metrics.jsonl is full after 200 bytes, and there are 100 records: the queue of
    a writer's thread holds 10."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = MetricsWriter(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        for step in range(100):
            writer._board.write(step, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.write(100, {"loss": 2.0})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 100, "loss": 2.0}]
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "TensorBoard gets nothing more of this run" in said[0]


def test_a_board_that_cannot_be_opened_is_a_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_tracker_is_one_line_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=f"report.trackers={name}: the package is not installed: uv sync --extra {name}"
    ):
        open_writers(ReportConfig(trackers=(name,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("steps", "from_step", "lost"),
    [
        ([], 40, "steps 1 to 40"),
        ([10, 20], 40, "steps 21 to 40"),
        ([10, 20, 30], 40, ""),
        ([10, 20, 30, 40], 40, ""),
        ([1, 2, 3], 3, ""),
        ([], 0, ""),
        ([10, 20], 25, ""),
    ],
)
def test_records_that_were_cut_off_are_said(tmp_path, caplog, steps, from_step, lost):
    if steps:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 1.0}) + "\n" for n in steps))
    MetricsWriter(tmp_path, from_step=from_step, tensorboard=False).close()
    assert (f"no records of {lost}, which the run has taken" in caplog.text) == bool(lost), caplog.text


def flip_a_digit(lines):
    return [lines[0], lines[1].replace("1.0", "9.0"), *lines[2:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip_a_digit, "metrics.jsonl:2: the line differs from what the run wrote (metrics.crc32)"),
        (
            lambda lines: lines[1:],
            "metrics.jsonl:1: the line differs from what the run wrote (metrics.crc32); so do 2 lines",
        ),
        (lambda lines: [*lines[:-1], lines[-1][:9]], "metrics.jsonl:4: the line differs from what the run wrote"),
        (lambda lines: lines[:-1], "metrics.jsonl: the last records that the run wrote are missing: 1"),
        (lambda lines: [*lines, lines[-1][:9]], ""),  # killed while it wrote
        (lambda lines: lines, ""),
    ],
)
def test_a_record_that_was_changed_is_said(tmp_path, caplog, change, said):
    write(tmp_path, [1, 2, 3, 4])
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    write(tmp_path, [5], from_step=4)
    assert len(caplog.records) == bool(said), caplog.text
    assert said in caplog.text
    caplog.clear()
    write(tmp_path, [6], from_step=5)  # it is said once
    assert caplog.text == ""


def test_a_run_with_a_line_that_is_no_record_is_resumed_without_it(tmp_path, caplog):
    """A flipped bit in a log must not cost the run."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step"; 2}\n{"step": 3}\n')
    write(tmp_path, [4], from_step=3)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3, 4]
    (said,) = (r.getMessage() for r in caplog.records)
    assert "metrics.jsonl:2: not a record" in said
    assert said.endswith("these lines are not records and are skipped")


@pytest.mark.parametrize("sums", [None, "", "0000", "\x00"])
def test_a_run_without_checksums_is_resumed(tmp_path, caplog, sums):
    write(tmp_path, [1, 2])
    (tmp_path / "metrics.crc32").unlink()
    if sums is not None:
        (tmp_path / "metrics.crc32").write_text(sums)
    write(tmp_path, [3], from_step=2)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "metrics.crc32").read_text().count("\n") == 3


@pytest.mark.parametrize("line", ["3", '"x"', "[]", "{}", '{"step": "a"}', '{"step": null}', "[" * 100_000])
def test_a_line_that_is_no_record_is_named_with_its_number(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a record") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)
