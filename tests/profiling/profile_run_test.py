"""Real runs with a profile: what the page's numbers sum to, what a resumed run does, and what stays
as it was."""

import dataclasses
import json
import re

import pytest

from bigmodel_jax import cli, config_file
from bigmodel_jax.config import Config, EvalConfig, ReportConfig, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import TextData, TextFiles, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.profiling.recorder import Profiled
from bigmodel_jax.training import compiled, shared_programs
from bigmodel_jax.training.run import train


@pytest.fixture
def config(tmp_path) -> Config:
    for name in ("train", "validation"):
        (tmp_path / f"{name}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    files = TextFiles(str(tmp_path / "train.txt"), str(tmp_path / "validation.txt"))
    tokenizer = TokenizerConfig("bytes")
    data = TextData(source=files, seq_len=32, cache_dir=str(tmp_path / "cache"), tokenizer=tokenizer)
    model = dataclasses.replace(LlamaConfig.tiny(), vocab_size=512, max_seq_len=32)
    steps = TrainConfig(steps=6, batch_size=8, log_every=1, profile="2:5")
    return Config(
        model,
        NextToken(),
        data,
        optim=OptimConfig(warmup_steps=0),
        train=steps,
        parallel=ParallelConfig(data=8),
        eval=EvalConfig(baselines=False),
        report=ReportConfig(tensorboard=False),
    )


def without(config: Config, **changes) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


def lines(run_dir) -> list[str]:
    return (run_dir / "steps.hex").read_text().splitlines()


def computed(text: str) -> list[str]:
    """A program's instructions, without the lines of code that they come from."""
    lines = [re.sub(r",? ?metadata=\{[^}]*\}", "", line) for line in text.splitlines()]
    return [line for line in lines if " = " in line and "(" in line]


@pytest.mark.slow
def test_a_profile_accounts_for_the_whole_time_and_changes_nothing(config, tmp_path, monkeypatch):
    texts = []

    def noted(*args, **kwargs):
        made = compiled.compile_programs(*args, **kwargs)
        texts.append(made.step.as_text())
        return made

    monkeypatch.setattr(shared_programs, "compile_programs", noted)
    train(config, tmp_path / "with")
    train(without(config, profile=""), tmp_path / "without")
    assert computed(texts[0]) == computed(texts[1])
    assert lines(tmp_path / "with") == lines(tmp_path / "without")
    assert not (tmp_path / "without" / "profile").exists()

    found = json.loads((tmp_path / "with" / "profile.json").read_text())
    assert found["steps"] == 3
    for name in ("kinds", "modules", "passes"):
        assert sum(one["seconds"] for one in found[name]) == pytest.approx(found["step_seconds"], rel=1e-6)
    assert found["step_seconds"] == pytest.approx(found["wall_seconds"], rel=0.05)
    times = {one["name"]: one["seconds"] for one in found["modules"]}
    assert all(times[name] > 0 for name in ("attention", "mlp", "norm", "optimizer", "head and loss"))
    kinds = {one["name"]: one for one in found["kinds"]}
    assert all(kinds[name]["roofline"] > 0 for name in ("products", "attention"))
    assert {"forward", "backward", "update"} <= {one["name"] for one in found["passes"]}
    assert any(one["source"].startswith("nn/") for one in found["operations"])
    assert len(found["runs"]) == 3
    assert "profile.html" in (tmp_path / "with" / "report.html").read_text()
    assert "Operations" in (tmp_path / "with" / "profile.html").read_text()
    assert len(list((tmp_path / "with" / "profile").glob("plugins/profile/*/*.trace.json.gz"))) == 1


@pytest.mark.exhaustive
def test_a_resumed_run_keeps_its_profile_and_refuses_a_window_behind_it(config, tmp_path):
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / "profile.json").read_bytes()
    train(without(config, steps=8), tmp_path / "run")
    assert (tmp_path / "run" / "profile.json").read_bytes() == before
    with pytest.raises(ValueError, match=r"train.profile = '3:6' begins before step 8"):
        train(without(config, steps=12, profile="3:6"), tmp_path / "run")
    train(without(config, steps=10, profile="8:10"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "profile.json").read_text())["window"] == "8:10"


@pytest.mark.slow
def test_a_run_for_its_profile_alone_ends_with_its_window(config, tmp_path):
    with pytest.raises(Profiled):
        train(config, tmp_path / "alone", profile_alone=True)
    assert not list((tmp_path / "alone" / "checkpoints").glob("[0-9]*"))
    assert (tmp_path / "alone" / "profile.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "said"),
    [("100:110", "the run has 6 steps; LAST must be at most 6"), ("3", "FIRST:LAST"), ("4:4", "holds no step")],
)
def test_a_bad_window_is_one_line_before_the_folder_is_made(config, tmp_path, window, said):
    with pytest.raises(ValueError) as caught:
        train(without(config, profile=window), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_verb_prints_tables_and_keeps_no_checkpoint(config, tmp_path, capsys):
    path = tmp_path / "one" / "config.json"
    path.parent.mkdir()
    config_file.save(without(config, profile="", steps=100), path)
    run_dir = tmp_path / "apart"
    options = ["--run_dir", str(run_dir), "--steps", "2", "--warmup", "1"]
    cli.main(["profile", str(path), *options])
    said = capsys.readouterr().out
    assert "products" in said
    assert "mlp" in said
    assert "Roofline: the time of arithmetic and memory" in said
    assert json.loads((run_dir / "profile.json").read_text())["window"] == "1:3"
    assert not list((run_dir / "checkpoints").glob("[0-9]*"))
    cli.main(["profile", str(path), *options])  # takes the place of the one before
    (run_dir / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["profile", str(path), *options])
    assert "a profile needs a folder of its own" in capsys.readouterr().err


def test_the_verb_refuses_a_window_of_its_own(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["profile", "configs/lm_tiny.py", "--train.profile", "1:2"])
    assert "profile takes --warmup and --steps" in capsys.readouterr().err
