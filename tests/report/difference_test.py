"""Where two runs part: known answers, of records and saves made by hand and of two real runs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import runs
from bigmodel_jax import cli
from bigmodel_jax.checkpoint import store
from bigmodel_jax.checkpoint.digest import batch_digest
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.report.difference import first_differences
from bigmodel_jax.report.writers import read_metrics
from step_trace_test import written


def saved(folder, step: int, **leaves) -> None:
    with store.open_store(folder / "checkpoints", CheckpointConfig(keep=9)) as saves:
        store.save(saves, step, {"params": leaves, "step": jnp.int32(step)}, {}, {})


def test_the_first_step_the_first_batch_and_the_first_leaf(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    weight = jnp.arange(6.0)
    for folder in (a, b):
        folder.mkdir()
        saved(folder, 2, first=weight, second=weight)
    written(a, 0, (1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0))
    written(b, 0, (1, 4.0), (2, 3.0), (9, 2.5))
    saved(a, 3, first=weight, second=weight)
    saved(b, 3, first=weight, second=weight.at[4].set(np.nextafter(np.float32(4), np.float32(5))))
    loss, batches, saves = first_differences(a, b)
    assert loss == "Loss: differs first at step 3: 2 and 2.5."
    assert batches == "Batches: the first that differs is that of step 3 (digests 00000003 and 00000009)."
    assert (
        saves == "Saves: the save of step 3 is the first that differs, first in params/second (1 of 3 leaves differ)."
    )


def test_runs_that_are_the_same(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        saved(folder, 2, first=jnp.ones(3))
        written(folder, 1, (1, np.nan))
    assert first_differences(a, b) == [
        "Loss: the same in all 1 steps that both have taken (1 other steps are not known).",
        "Batches: the same in all 1 steps that both have taken (1 other steps are not known).",
        "Saves: the same in every leaf, at step 2.",
    ]


def test_a_leaf_that_one_run_lacks_and_one_of_another_shape(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    for folder in (a, b, c):
        folder.mkdir()
        written(folder, 0, (1, 1.0))
    saved(a, 1, first=jnp.ones(3), second=jnp.ones(2))
    saved(b, 1, first=jnp.ones(3))
    saved(c, 1, first=jnp.ones(4), second=jnp.ones(2))
    assert "first in params/second, which one of them lacks (1 of 3 leaves differ)" in first_differences(a, b)[2]
    assert "first in params/first, float32[3] and float32[4] (1 of 3" in first_differences(a, c)[2]


def test_runs_of_an_older_version_are_compared_by_their_records(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, loss in ((a, 2.0), (b, 2.5)):
        folder.mkdir()
        records = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": loss}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    loss, batches, saves = first_differences(a, b)
    assert loss == "Loss: of the steps that both have logged, it differs first at step 20: 2.0 and 2.5."
    assert batches.startswith("Batches: no step of which both folders keep a digest")
    assert saves == "Saves: none is of the same step in both runs."


def test_the_digest_of_a_batch_sees_every_array_and_its_place():
    batch = {"tokens": jnp.arange(6).reshape(2, 3), "weights": jnp.ones((2, 3))}
    digests = {
        int(batch_digest(b))
        for b in (
            batch,
            batch | {"weights": batch["weights"].at[1, 2].set(0)},
            batch | {"tokens": batch["tokens"][::-1]},
            {"tokens": batch["weights"], "weights": batch["tokens"]},
        )
    }
    assert len(digests) == 4


@pytest.mark.slow
def test_report_of_two_runs_says_where_they_part(tmp_path, capsys):
    """One text has another last line, which some batch holds: that batch is the first that
    differs."""
    path = runs.write(tmp_path)
    options = ["--eval.sample.prompt", "", "--report.tensorboard", "False", "--checkpoint.keep", "9"]
    cli.main(["train", str(path), "--run_dir", str(tmp_path / "a"), *options])
    train = tmp_path / "train.txt"
    train.write_text(train.read_text()[:-1] + "!")
    cli.main(["train", str(path), "--run_dir", str(tmp_path / "b"), *options])
    assert {r["recompilations"] for r in read_metrics(tmp_path / "a") if "loss" in r} == {0}
    capsys.readouterr()
    page = tmp_path / "ab.html"
    cli.main(["report", str(tmp_path / "a"), str(tmp_path / "a"), "--output", str(page)])
    same = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in same[:3]] == ["Loss", "Batches", "Saves"]
    assert all("the same in" in line for line in same[:3])
    assert same[3] == str(page)
    cli.main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(page)])
    loss, batches, saves, _ = capsys.readouterr().out.splitlines()
    a, b = ((tmp_path / name / "steps.hex").read_text().splitlines() for name in ("a", "b"))
    at = next(n for n, (x, y) in enumerate(zip(a, b, strict=True), 1) if x[:8] != y[:8])
    assert f"the first that differs is that of step {at} " in batches
    assert f"differs first at step {at}: " in loss
    assert f"the save of step {-(-at // 4) * 4} is the first that differs, first in params/" in saves
    assert "First difference" in page.read_text()
