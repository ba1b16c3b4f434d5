"""Early stopping, and the checkpoint that is meant: the newest, one by its step, the best."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import runs
from bigmodel_jax import cli
from bigmodel_jax.checkpoint import kept
from bigmodel_jax.config import CheckpointConfig, EvalConfig
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import sharding
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.optim import OptimConfig
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


# ------------------------------------------------------------------------------------------------ whole runs

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

    def given(self, step, state):
        monkeypatch.setattr(loop, "evaluate", lambda *_: {"eval/loss": LOSSES.get(step, 4.0)})
        return evaluate(self, step, state)

    monkeypatch.setattr(loop.Run, "evaluate", given)


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


def test_a_run_that_was_interrupted_stops_where_it_would_have(tmp_path, evaluations):
    run(stopping(tmp_path, steps=8), tmp_path / "run")
    said, _ = run(stopping(tmp_path), tmp_path / "run")
    assert "Resuming at step 8" in said
    assert "2 steps in" in said
    assert "Stopped early" in said


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


# ------------------------------------------------------------------------------------------------ which checkpoint


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of 6 steps with its saves of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("kept")
    options = ["--train.steps", "6", "--checkpoint.every", "3", "--checkpoint.best_metric", "eval/loss"]
    cli.main(["train", str(runs.write(folder)), "--run_dir", str(folder / "run"), "--eval.every", "3", *options])
    return folder / "run"


def test_every_verb_that_opens_a_run_takes_a_step(saved, tmp_path, capsys):
    for step in ("3", "6", "best"):
        cli.main(["eval", str(saved), "--step", step, "--json"])
        cli.main(["generate", str(saved), "--prompt", "the", "--max_tokens", "4", "--step", step])
        cli.main(["export", str(saved), str(tmp_path / step), "--step", step])
        evaluated = json.loads(capsys.readouterr().out.splitlines()[0])
        written = records(saved)[evaluated["step"]]
        assert evaluated["eval/loss"] == pytest.approx(written["eval/loss"], rel=1e-6)
        assert evaluated["step"] == (6 if step == "best" else int(step))
    weights = [(tmp_path / step / "model.safetensors").read_bytes() for step in ("3", "6", "best")]
    assert weights[0] != weights[1] == weights[2]


@pytest.mark.parametrize("verb", ["eval", "generate", "export"])
@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("5", "--step 5: that step is not kept; {run} holds steps 3, 6"),
        ("last", "--step last: it must be a step or 'best'; {run} holds steps 3, 6"),
    ],
)
def test_a_step_that_is_not_kept_is_refused_with_those_that_are(saved, tmp_path, capsys, verb, step, says):
    more = {"eval": [], "generate": ["--prompt", "the"], "export": [str(tmp_path / "out")]}[verb]
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, str(saved), *more, "--step", step])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().removeprefix("error: ") == says.format(run=saved)


def test_no_save_is_the_best_where_none_was_ranked(saved):
    with pytest.raises(ValueError, match="none of them evaluated by checkpoint.best_metric = 'eval/accuracy'; give a"):
        kept.find(saved, CheckpointConfig(best_metric="eval/accuracy"), "best")
    with pytest.raises(ValueError, match="checkpoint.best_metric is empty, so that none is the best; give a step"):
        kept.find(saved, CheckpointConfig(), "best")


# ------------------------------------------------------------------------------------------------ forks


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(config, folder) of a run of 6 steps with saves of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("source")
    run(config_of(folder), folder / "run")
    return config_of(folder), folder / "run"


def fork(source, which: str, **train):
    config, folder = source
    return dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=f"{folder}{which}", **train))


def test_a_fork_of_all_goes_on_bit_for_bit_as_its_source_did(source, tmp_path):
    said, numbers = run(fork(source, "@3", init_state="all"), tmp_path / "fork")
    assert f"Starting from the weights, optimizer and step (3) of {source[1]}@3." in said
    assert "Resuming" not in said
    assert "3 steps in" in said
    assert numbers[1:4] == [3, 4, 5]
    mesh = sharding.make_mesh(ParallelConfig(), jax.devices()[:1])
    jax.tree.map(
        np.testing.assert_array_equal,
        *(load_weights(source[0], folder, mesh)[0] for folder in (source[1], tmp_path / "fork")),
    )
    assert records(source[1])[6]["loss"] == records(tmp_path / "fork")[6]["loss"]


def test_a_fork_of_weights_begins_at_step_0_with_those_of_that_step(source, tmp_path):
    mesh = sharding.make_mesh(source[0].parallel)
    state, _ = loop.begin(fork(source, "@3"), mesh, loop.Console(quiet=True)), None
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, load_weights(source[0], source[1], mesh, "3")[0])


@pytest.mark.parametrize(
    ("which", "train", "changes", "says"),
    [
        ("@4", {}, {}, r"train\.init_from = '.*@4': that step is not kept; .* holds steps 3, 6$"),
        ("@best", {}, {}, r"train\.init_from = '.*@best': .* holds steps 3, 6, and checkpoint\.best_metric is empty"),
        ("@x", {}, {}, r"train\.init_from = '.*@x': it must be a step or 'best'"),
        ("/no@3", {}, {}, r"train\.init_from = '.*/no' is not a run's folder"),
        ("@3", {"init_state": "all", "steps": 3}, {}, r"train\.steps = 3 is not above step 3, where .*@3 stands"),
        (
            "@3",
            {"init_state": "all"},
            {"optim": OptimConfig(name="lion")},
            r"init_state = 'all': .* optimizer: .*; 'we",
        ),
    ],
    ids=["step", "best", "word", "folder", "steps", "optimizer"],
)
def test_what_cannot_be_forked_is_refused_in_one_line(source, tmp_path, which, train, changes, says):
    with pytest.raises(ValueError, match=says) as error:
        run(dataclasses.replace(fork(source, which, **train), **changes), tmp_path / "fork")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "fork").exists()


def test_all_needs_a_run_to_take_it_from(source):
    config, _ = source
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_state="all"))
    with pytest.raises(ValueError, match=r"train\.init_state = 'all' needs train\.init_from, such as"):
        validate(config)


def test_a_changed_config_is_told_of_the_fork(source):
    config, folder = source
    changed = dataclasses.replace(config, optim=dataclasses.replace(config.optim, lr=0.5))
    with pytest.raises(ValueError, match=rf"optim\.lr .*--train\.init_from {folder}@STEP .*--train\.init_state all"):
        loop.train(changed, folder)


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    (tmp_path / "a@3").mkdir()
    assert kept.split(f"{tmp_path}/a@3") == (tmp_path / "a@3", "")
    assert kept.split(f"{tmp_path}/a@3@best") == (tmp_path / "a@3", "best")
    assert kept.split("runs/a") == (kept.Path("runs/a"), "")
