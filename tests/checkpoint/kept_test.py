"""Which checkpoint is meant: the newest, one by its step, the best; by every verb that opens a
run."""

import json
from pathlib import Path

import pytest

import runs
from bigmodel_jax import cli
from bigmodel_jax.checkpoint import kept
from bigmodel_jax.config import CheckpointConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run of 6 steps with its saves of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("kept")
    options = ["--train.steps", "6", "--checkpoint.every", "3", "--checkpoint.best_metric", "eval/loss", *runs.BARE]
    cli.main(["train", str(runs.write(folder)), "--run_dir", str(folder / "run"), "--eval.every", "3", *options])
    return folder / "run"


def written_at(run: Path, step: int) -> dict:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(r for r in records if r["step"] == step and "eval/loss" in r)


def test_every_verb_that_opens_a_run_takes_a_step(saved, tmp_path, capsys):
    for step in ("3", "6", "best"):
        cli.main(["eval", str(saved), "--step", step, "--json"])
        cli.main(["generate", str(saved), "--prompt", "the", "--max_tokens", "4", "--step", step])
        cli.main(["export", str(saved), str(tmp_path / step), "--step", step])
        evaluated = json.loads(capsys.readouterr().out.splitlines()[0])
        written = written_at(saved, evaluated["step"])
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


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    (tmp_path / "a@3").mkdir()
    assert kept.split(f"{tmp_path}/a@3") == (tmp_path / "a@3", "")
    assert kept.split(f"{tmp_path}/a@3@best") == (tmp_path / "a@3", "best")
    assert kept.split("runs/a") == (Path("runs/a"), "")


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 6)])
def test_the_best_is_by_the_mode_and_of_two_equals_the_newer(tmp_path, mode, best):
    losses = {1: "3.0", 2: "1.0", 3: "NaN", 4: "1.0", 5: None, 6: "9.0", 7: "cut sh"}
    for step, text in losses.items():
        folder = tmp_path / "checkpoints" / str(step) / "metrics"
        folder.mkdir(parents=True)
        if text is not None:
            (folder / "metrics").write_text(f'{{"eval/loss": {text}}}')
    assert kept.find(tmp_path, CheckpointConfig(best_metric="eval/loss", best_mode=mode), "best") == best
