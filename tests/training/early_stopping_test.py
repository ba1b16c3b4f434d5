"""Early stopping: what counts as better, where a run ends, and what a start after that says."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bigmodel_jax.config import CheckpointConfig, EvalConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.training import loop
from bigmodel_jax.training.early_stopping import Patience
from bigmodel_jax.training.saved import load_weights
from loop_test import config_of, records, run

NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "values", "better"),
    [
        ("min", [3, 2, 2, 2.5, 1], [True, True, False, False, True]),
        ("max", [3, 2, 4, 4, 5], [True, False, True, False, True]),
        ("min", [NAN, 3, NAN, float("inf"), 2], [False, True, False, False, True]),
    ],
)
def test_only_a_better_evaluation_counts_as_one(mode, values, better):
    patience = Patience("eval/loss", mode, limit=9)
    assert [patience.see(step, {"eval/loss": float(value)}) for step, value in enumerate(values)] == better


def test_it_is_over_after_so_many_in_a_row():
    patience = Patience("eval/loss", "min", limit=2)
    over = []
    for value in (3.0, 4.0, 2.0, 2.0, 5.0):
        patience.see(0, {"eval/loss": value})
        over.append(patience.is_over)
    assert over == [False, False, False, False, True]


def test_what_a_save_keeps_of_it_goes_on_and_another_metric_begins_anew():
    first = Patience("eval/loss", "min", limit=3)
    first.see(4, {"eval/loss": 2.0})
    first.see(8, {"eval/loss": 3.0})
    state = json.loads(json.dumps({"next_batch": 8} | first.get_state()))
    again, other = Patience("eval/loss", "min", limit=3), Patience("eval/accuracy", "max", limit=3)
    again.set_state(state)
    other.set_state(state)
    assert again == first
    assert other == Patience("eval/accuracy", "max", limit=3)


def test_without_it_nothing_is_counted_and_nothing_is_kept():
    patience = Patience("eval/loss", "min", limit=0)
    assert not any(patience.see(step, {"eval/loss": -step}) for step in range(3))
    assert (patience.is_over, patience.get_state()) == (False, {})
    patience.set_state({"next_batch": 3})


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"checkpoint": CheckpointConfig()}, "checkpoint.best_metric, such as eval/loss"),
        ({"eval": EvalConfig(patience=3)}, "eval.every, such as 100"),
    ],
    ids=["metric", "every"],
)
def test_it_needs_a_metric_and_evaluations(tmp_path, changes, missing):
    with pytest.raises(ValueError) as error:
        validate(dataclasses.replace(stopping(tmp_path), **changes))
    assert str(error.value) == f"eval.patience = 3 needs {missing}"


# --------------------------------------------------------------------------------------- whole runs

LOSSES = {2: 5.0, 4: 3.0, 6: 4.0, 8: 4.0}  # later evaluations: 4.0


def stopping(folder, steps=40, patience=3):
    config = config_of(folder)
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, steps=steps),
        eval=EvalConfig(every=2, patience=patience),
        checkpoint=CheckpointConfig(keep=1, best_metric="eval/loss"),
    )


@pytest.fixture
def evaluations(monkeypatch):
    """Every evaluation gives the loss that LOSSES has for its step."""
    evaluate = loop.Run.evaluate

    def given(self, step, *rest):
        monkeypatch.setattr(loop, "evaluate", lambda *_: {"eval/loss": LOSSES.get(step, 4.0)})
        return evaluate(self, step, *rest)

    monkeypatch.setattr(loop.Run, "evaluate", given)


@pytest.mark.slow
def test_a_run_stops_early_as_at_its_end_and_does_not_silently_train_on(tmp_path, evaluations):
    folder = tmp_path / "run"
    said, _ = run(stopping(tmp_path), folder)
    assert "10 steps in" in said
    assert (
        "Stopped early: eval/loss has not been better than 3 at step 4 for 3 evaluations (eval.patience = 3)." in said
    )
    assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [4, 10], "the best one, and the last"
    assert max(records(folder)) == 10
    assert "eval/loss" in records(folder)[10]
    assert (folder / "report.html").is_file()

    said, numbers = run(stopping(tmp_path), folder)
    assert "stopped early at step 10: eval/loss has not been better than 3 at step 4 for 3 evaluations" in said
    assert "To train on, raise --eval.patience, or give 0." in said
    assert numbers == []

    said, numbers = run(stopping(tmp_path, patience=4), folder)
    assert "Resuming at step 10" in said
    assert "2 steps in" in said
    said, _ = run(stopping(tmp_path, steps=14, patience=0), folder)
    assert "Resuming at step 12" in said
    assert "Stopped early" not in said


@pytest.mark.slow
def test_a_run_that_was_interrupted_stops_where_it_would_have(tmp_path, evaluations):
    run(stopping(tmp_path, steps=8), tmp_path / "run")
    said, _ = run(stopping(tmp_path), tmp_path / "run")
    assert "Resuming at step 8" in said
    assert "2 steps in" in said
    assert "Stopped early" in said


@pytest.mark.slow
def test_the_best_checkpoint_or_one_by_its_step_is_loaded(tmp_path, evaluations):
    config, folder = stopping(tmp_path), tmp_path / "run"
    run(config, folder)
    mesh = sharding.make_mesh(ParallelConfig(), jax.devices()[:1])
    found = {which: load_weights(config, folder, mesh, which) for which in ("", "best", "4", "10")}
    assert {which: step for which, (_, step) in found.items()} == {"": 10, "best": 4, "4": 4, "10": 10}
    kernels = {which: np.asarray(tree["head"]["kernel"]) for which, (tree, _) in found.items()}
    assert (kernels["best"] == kernels["4"]).all()
    assert (kernels[""] == kernels["10"]).all()
    assert (kernels["best"] != kernels[""]).any()
