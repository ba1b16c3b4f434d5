"""Runs on a mixture: what each part gave is recorded, each part is evaluated, and stages may be
appended ahead of a run."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from bigmodel_jax import cli, config_file
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, ReportConfig, TrainConfig, override
from bigmodel_jax.core import sharding
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.data import Arrays, ImageData, MixtureData, Stage, TextData, TextFiles, TokenizerConfig
from bigmodel_jax.data.loader import EvalBatches
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.report.history import load_run
from bigmodel_jax.report.plot_style import LIGHT
from bigmodel_jax.report.plots import draw
from bigmodel_jax.report.progress import part_epochs
from bigmodel_jax.training import run_folder
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.state import init_state, weights
from loop_test import run


def numbers(train, validation, seed):
    rng = np.random.default_rng(seed)
    split = lambda n: {"image": rng.integers(0, 256, (n, 8, 8, 1), np.uint8), "label": np.arange(n) % 10}  # noqa: E731
    return {"train": split(train), "validation": split(validation)}


def web():
    return numbers(20, 13, 0)


def books():
    return numbers(6, 9, 1)


def config_of(folder, **changes) -> Config:
    parts = tuple(ImageData(source=Arrays(f"{__name__}:{f.__name__}")) for f in (web, books))
    mixture = MixtureData(
        parts=parts, stages=(Stage(0, (3, 1)),), names=("web", "books"), cache_dir=str(folder / "cache")
    )
    return Config(
        MLPConfig.tiny(),
        Classification(),
        dataclasses.replace(mixture, **changes),
        train=TrainConfig(steps=4, batch_size=8, log_every=1),
        eval=EvalConfig(every=2),
        checkpoint=CheckpointConfig(every=2),
        report=ReportConfig(tensorboard=False),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(config, folder) of a run of four steps."""
    folder = tmp_path_factory.mktemp("mixture")
    run(config := config_of(folder), folder / "run")
    return config, folder / "run"


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_metrics_say_what_each_part_gave_and_the_page_draws_it(whole):
    _, folder = whole
    steps = [r for r in records(folder) if "loss" in r]
    for record in steps:
        given = {name: record[f"mixture/{name}/examples"] for name in ("web", "books")}
        assert given == {"web": 6 * record["step"], "books": 2 * record["step"]}
        assert record["mixture/books/epochs"] == pytest.approx(given["books"] / 6)
        assert "mixture/web/tokens" not in record, "a step counts examples"
    assert {"eval/loss/web", "eval/loss/books"} <= records(folder)[-1].keys()
    found = load_run(folder)
    pictures = draw(found, LIGHT)
    assert {"loss_by_part", "epochs_by_part", "share_by_part"} <= pictures.keys()
    assert not [name for name in pictures if name.startswith(("mixture", "loss_web", "loss_books"))]
    assert found.metric("eval/loss/web").title == "Held-out loss, web"


def test_the_bar_has_the_passes_of_a_few_parts():
    sums = {
        f"mixture/{i}/{what}": Mean(np.float64(i), np.float64(1)) for i in range(4) for what in ("epochs", "examples")
    }
    assert part_epochs(sums | {"loss": None}) == {f"epochs {i}": i for i in range(4)}
    assert part_epochs(sums | {"mixture/4/epochs": None}) == {}


def test_parts_are_evaluated_with_the_whole_whose_loss_stays_what_it_was(tmp_path):
    config = config_of(tmp_path)
    mesh = sharding.make_mesh(config.parallel)
    step, tree = make_eval_step(config, mesh), weights(init_state(config, mesh))
    rows = config.data.open("validation")

    def losses(rows, size):
        return evaluate(config, step, tree, EvalBatches(rows, size, mesh, config.parallel.rules, config.data.row()))

    found, whole = losses(rows, 8), losses(NoParts(rows), 8)
    assert found["eval/loss"] == whole["eval/loss"], "bit for bit"
    assert found["eval/confusion"] == whole["eval/confusion"]
    for name, part in zip(rows.names, rows.parts, strict=True):
        assert found[f"eval/loss/{name}"] == pytest.approx(losses(part, 8)["eval/loss"], rel=1e-6)
    assert found["eval/loss/web"] != found["eval/loss/books"]
    assert "eval/loss/web" not in whole


class NoParts:
    """The rows of a mixture as rows of one set."""

    def __init__(self, rows):
        self.batch, self.num = rows.batch, len(rows)

    def __len__(self):
        return self.num


def test_tokens_given_are_what_throughput_counts(tmp_path):
    (tmp_path / "a.txt").write_text("one two three " * 20)
    part = TextData(source=TextFiles(*[str(tmp_path / "a.txt")] * 2), seq_len=8, tokenizer=TokenizerConfig("bytes"))
    data = MixtureData(parts=(part, part), stages=(Stage(0, (3, 1)),), cache_dir=str(tmp_path))
    assert data.open("train").given(5, 4) == {
        "mixture/0/examples": 15,
        "mixture/0/tokens": 120,
        "mixture/0/epochs": 15 / 36,
        "mixture/1/examples": 5,
        "mixture/1/tokens": 40,
        "mixture/1/epochs": 5 / 36,
    }


# ---------------------------------------------------------------- stages that are appended


@pytest.mark.slow
def test_a_resumed_run_takes_stages_that_lie_ahead_and_keeps_them_all(whole, tmp_path):
    config, folder = whole
    shutil.copytree(folder, tmp_path / "run")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    appended = override(longer, ["--data.stages.1.step", "4", "--data.stages.1.weights", "0", "1"])
    assert appended.data.stages == (*config.data.stages, Stage(4, (0, 1)))
    said, _ = run(appended, tmp_path / "run")
    assert "Resuming at step 4" in said
    last = [r for r in records(tmp_path / "run") if "loss" in r][-1]
    assert (last["mixture/web/examples"], last["mixture/books/examples"]) == (24, 24)
    assert config_file.load(tmp_path / "run").data.stages == appended.data.stages
    with pytest.raises(ValueError, match=r"data\.stages\.1 was 'Stage', now None"):
        run_folder.check(tmp_path / "run", longer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stages": (Stage(0, (3, 1)), Stage(3, (1, 1)))},
            r"^data\.stages\.1\.step = 3: the run is at step 4; a stage that",
        ),
        (
            {"stages": (Stage(0, (1, 1)), Stage(9, (1, 1)))},
            r"data\.stages\.0\.weights was \(3, 1\), now \(1, 1\); give",
        ),
        ({"max_epochs": (1, 0)}, r"data\.max_epochs was \(\), now \(1, 0\); give another --run_dir"),
        ({"names": ("books", "web")}, r"data\.names was \('web', 'books'\), now \('books', 'web'\)"),
        ({"stages": (Stage(0, (3, 1), 1.0), Stage(4, (1, 1)))}, None),
    ],
)
def test_anything_else_of_a_mixture_makes_another_run_and_is_named(whole, change, message):
    config, folder = whole
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **change))
    if message is None:
        return run_folder.check(folder, changed)
    with pytest.raises(ValueError, match=message):
        run_folder.check(folder, changed)


def test_a_local_save_beyond_the_newest_checkpoint_counts(whole):
    config, folder = whole
    stages = (*config.data.stages, Stage(5, (1, 1)))
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, stages=stages))
    run_folder.check(folder, changed, 5)
    with pytest.raises(ValueError, match=r"^data\.stages\.1\.step = 5: the run is at step 6"):
        run_folder.check(folder, changed, 6)


@pytest.mark.slow
def test_a_run_longer_than_its_caps_allow_is_refused_before_it_begins(tmp_path):
    config = config_of(tmp_path, max_epochs=(1, 1))
    with pytest.raises(
        ValueError, match=r"^train\.steps = 4: 32 examples are asked for, and after 26 examples every part"
    ):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(override(config, ["--train.steps", "3"]), tmp_path / "run")
    last = [r for r in records(tmp_path / "run") if "loss" in r][-1]
    assert (last["mixture/web/examples"], last["mixture/books/examples"]) == (18, 6), "books gave its one pass"


# ---------------------------------------------------------------- mistakes, at the command line

TEXTS = """
from bigmodel_jax.config import Config
from bigmodel_jax.data import MixtureData, Stage, TextData, TextFiles, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken

def get_config():
    parts = tuple(
        TextData(source=TextFiles(path, path), seq_len=8, tokenizer=TokenizerConfig(vocab_size=270))
        for path in ("{0}/a.txt", "{0}/b.txt")
    )
    data = MixtureData(parts=parts, stages=(Stage(0, (1, 1)),), cache_dir="{0}/cache")
    return Config(LlamaConfig.tiny(), NextToken(), data)
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--data.stages.0.weights", "1", "-1"),
            r"^data\.stages\.0\.weights = -1\.0; it must be 0 or more$",
        ),
        (
            ("--data.stages.0.weights", "0", "0"),
            r"^data\.stages\.0\.weights = \(0\.0, 0\.0\); it must have 2 numbers, not all 0$",
        ),
        (("--data.max_epochs", "1"), r"^data\.max_epochs = \(1\.0,\); it must have 2 entries, one a part, or none$"),
        (("--data.max_epochs", "-1", "1"), r"^data\.max_epochs = -1\.0; it must be 0 or more$"),
        (
            ("--data.names", "a", "a"),
            r"^data\.names = \('a', 'a'\): 'a'; each name must differ, and have up to 40 letters",
        ),
        (("--data.names", "a/b", "c"), r"^data\.names = \('a/b', 'c'\): 'a/b'; each name must differ"),
        (
            ("--data.stages.0.temperature", "2"),
            r"^data\.stages\.0\.temperature = 2: the weights are given; leave them out",
        ),
        (
            ("--data.stages.1.weights", "1", "1"),
            r"^--data\.stages\.1\.weights: a new stage needs --data\.stages\.1\.step, and",
        ),
        (("--data.stages.2.step", "1"), r"^Unrecognized options: --data\.stages\.2\.step"),
        ((), r"^data\.parts\.1: its tokenizer is not that of data\.parts\.0; give all parts one tokenizer\.json"),
    ],
)
def test_a_mistake_at_the_command_line_is_one_line(tmp_path, capsys, options, message):
    (tmp_path / "a.txt").write_text("one two three " * 20)
    (tmp_path / "b.txt").write_text("four five six " * 20)
    (tmp_path / "own.py").write_text(TEXTS.format(tmp_path))
    with pytest.raises((ValueError, SystemExit)) as caught:
        cli.main(["train", str(tmp_path / "own.py"), "--run_dir", str(tmp_path / "run"), *options])
    text = str(caught.value) if isinstance(caught.value, ValueError) else capsys.readouterr().err
    assert re.search(message, text.removeprefix("error: ").strip()), text
    assert text.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()
