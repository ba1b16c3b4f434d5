"""Steps that are not finite: what is logged of them, and when they end the run."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import cli
from bigmodel_jax.checkpoint import store
from bigmodel_jax.core import sharding
from bigmodel_jax.optim import OptimConfig, make_schedule
from bigmodel_jax.report.writers import read_metrics
from bigmodel_jax.training.diverged import Diverged, describe
from bigmodel_jax.training.state import init_state
from bigmodel_jax.training.step import make_train_step
from changed_batches import change_batches
from step_test import CONFIG, LENGTH, ROWS, one_device, text_batch


@pytest.mark.slow
def test_the_rate_that_is_logged_is_the_one_that_was_used():
    """After skipped steps the schedule stands where the optimizer does, not at the number of
    steps."""
    optim = OptimConfig(
        name="sgd", lr=1.0, betas=(0.0, 0.0), schedule="linear", final_lr_ratio=0.0, weight_decay=0, clip=0
    )
    config = dataclasses.replace(CONFIG, optim=optim, train=dataclasses.replace(CONFIG.train, steps=10))
    mesh = one_device()
    state, step, schedule = init_state(config, mesh), make_train_step(config, mesh), make_schedule(optim, 10)
    used = 0
    for i in range(6):
        bad = i in (1, 2, 3)
        batch = text_batch(i) | ({"weights": np.full((ROWS, LENGTH), np.nan, np.float32)} if bad else {})
        before = sharding.to_host(state.params)
        state, sums = step(state, batch)
        logged = float(sums["learning_rate"].compute())
        assert logged == pytest.approx(float(schedule(used)))
        if not bad:
            used += 1
            moved = jax.tree.map(lambda a, b: ((a - np.asarray(b)) ** 2).sum(), before, state.params)
            norm = float(sums["grad_norm"].compute())
            assert np.sqrt(sum(jax.tree.leaves(moved))) / norm == pytest.approx(logged, rel=1e-3)


@pytest.mark.slow
def test_what_is_not_finite_is_named():
    mesh = one_device()
    state = init_state(CONFIG, mesh)
    bad = text_batch() | {"weights": np.full((ROWS, LENGTH), np.nan, np.float32)}
    assert describe(CONFIG, mesh, state, text_batch(), 1) == "computed again, that step is finite"
    assert describe(CONFIG, mesh, state, bad, 1).startswith("the loss is not finite, nor is the gradient of embed/")
    broken = jax.tree.map(lambda x: x, state.params)
    broken["norm"]["scale"] = broken["norm"]["scale"].at[0].set(np.nan)
    said = describe(CONFIG, mesh, state.replace(params=broken), text_batch(), 1)
    assert said.startswith("the parameter norm/scale itself is not finite (1 of ")


@pytest.fixture
def diverging(tmp_path, monkeypatch):
    """A run's config whose batches have a weight that is not finite from the sixth on, and its
    folder."""
    path = runs.write(tmp_path)

    def poisoned(number, batch):
        return batch | {"weights": batch["weights"] * (np.nan if number >= 5 else 1.0)}

    change_batches(monkeypatch, poisoned)
    return path, tmp_path / "run"


@pytest.mark.slow
def test_a_run_that_is_never_finite_again_ends_with_code_1_step_and_parameter(diverging, capsys):
    path, run_dir = diverging
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(path), "--run_dir", str(run_dir), "--train.steps", "60", "--train.max_skipped", "4"])
    assert stopped.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the run diverged: from step 6 on, 4 steps in a row were skipped (train.max_skipped)" in said
    assert "the loss is not finite, nor is the gradient of embed/table" in said
    assert "the run diverged" in (run_dir / "log.txt").read_text()
    with store.open_store(run_dir / "checkpoints", CONFIG.checkpoint) as saves:
        assert store.latest_step(saves) in (9, 10), "the last finite weights are saved"
    assert (run_dir / "report.html").is_file()
    assert max(r["step"] for r in read_metrics(run_dir)) >= 9


@pytest.mark.exhaustive
def test_fewer_in_a_row_do_not_end_it(diverging):
    path, run_dir = diverging
    cli.main(["train", str(path), "--run_dir", str(run_dir), "--train.steps", "8", "--train.max_skipped", "4"])
    assert [r["skipped_steps"] for r in read_metrics(run_dir) if "skipped_steps" in r] == [0] * 5 + [1, 2, 3]


@pytest.mark.slow
def test_a_short_run_of_which_no_step_was_taken_has_diverged(diverging):
    path, run_dir = diverging
    for steps, code in (("5", None), ("8", 1)):
        with contextlib.nullcontext() if code is None else pytest.raises(SystemExit) as stopped:
            cli.main(["train", str(path), "--run_dir", str(run_dir), "--train.steps", steps])
    assert stopped.value.code == 1


def test_the_error_is_one_line():
    assert "\n" not in str(Diverged(6, 4, "the loss is not finite"))
