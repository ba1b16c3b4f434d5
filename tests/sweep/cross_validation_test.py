"""Cross-validations: what they leave, what they repeat after a kill, their figures, and what they
refuse."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.cli import main
from bigmodel_jax.data import MixtureData, PromptData, Stage, TextClassificationData, TextData
from bigmodel_jax.data.folded import Folds
from bigmodel_jax.data.sources.fold import HeldOutFold
from bigmodel_jax.report.fold_page import build_fold_page
from bigmodel_jax.report.page import build_report
from bigmodel_jax.sweep import cross_validation, seeds
from bigmodel_jax.sweep.metric import bounds
from bigmodel_jax.training import fits

FILE = Path(__file__).with_name("small_sweep.py")
ROOT = Path(__file__).parents[2]
CONFIG = config_file.load(FILE)
LOSS = ("eval/loss", "minimize")


def config_of(folder, *options):
    return config_file.load(FILE, ["--data.cache_dir", str(folder / "cache"), *options])


@pytest.fixture
def fake(monkeypatch):
    """Runs that take no time: the value of a fold is its number, and fold 3 fails."""
    seen = []

    def trained(config, folder, metric, programs, *, source):
        seen.append((folder.name, config.data.source.fold))
        n = config.data.source.fold
        return (None, "out of memory") if n == 3 else (float(n), "")

    monkeypatch.setattr(cross_validation, "trained", trained)
    found = lambda folder: {"eval/loss": float(folder.name), f"eval/{folder.name}": 1.0}  # noqa: E731
    monkeypatch.setattr(cross_validation, "evaluated", found)
    return seen


def test_each_fold_is_trained_once_and_the_record_says_how_it_ended(tmp_path, fake):
    said = []
    found = cross_validation.cross_validate(config_of(tmp_path), Folds(4), *LOSS, tmp_path, said.append, target="a.py")
    assert fake == [(str(n), n) for n in range(4)]
    assert json.loads((tmp_path / "folds.json").read_text()) == found
    assert [fold["value"] for fold in found["folds"]] == [0.0, 1.0, 2.0, None]
    assert found["records"] == [20] * 4
    assert sum(sum(counts) for counts in found["labels"].values()) == 80
    assert (found["label"], found["aside"]) == ("label", True)
    assert "fold 3 (4 of 4)  failed: out of memory" in said[-1]
    assert list(found["summary"]) == ["eval/loss"], "what not all folds have has no mean"
    assert (found["summary"]["eval/loss"]["mean"], found["summary"]["eval/loss"]["std"]) == (1.0, 1.0)
    assert cross_validation.lines(found)[0] == "The source's own validation split was not used."
    assert "mean 1, standard deviation 1 over 3 folds" in cross_validation.lines(found)[1]
    page = build_fold_page(tmp_path, tmp_path / "folds.html").read_text()
    assert "out of memory" in page
    assert "<b>3</b> of 4 folds finished" in page


def test_a_folder_with_other_folds_is_refused(tmp_path, fake):
    cross_validation.cross_validate(config_of(tmp_path), Folds(4), *LOSS, tmp_path, print)
    for other, what in (
        (Folds(5), "k = 4"),
        (Folds(4, seed=1), "seed = 0"),
        (Folds(4, stratify=False), "stratify = True"),
    ):
        with pytest.raises(ValueError, match=f"holds a cross-validation with {what}; give another --run_dir"):
            cross_validation.cross_validate(config_of(tmp_path), other, *LOSS, tmp_path, print)


def test_folds_of_other_options_are_refused_and_the_record_stays(tmp_path, fake):
    cross_validation.cross_validate(config_of(tmp_path), Folds(4), *LOSS, tmp_path, print)
    before, folder = (tmp_path / "folds.json").read_bytes(), tmp_path / "folds/2"
    folder.mkdir(parents=True)
    config_file.save(cross_validation.configured(config_of(tmp_path), Folds(4), 2), folder / "config.json")
    with pytest.raises(ValueError, match=r"folds/2' holds a run of another config: optim.lr was 0.01, now 0.5"):
        cross_validation.cross_validate(config_of(tmp_path, "--optim.lr", "0.5"), Folds(4), *LOSS, tmp_path, print)
    assert (tmp_path / "folds.json").read_bytes() == before


def test_the_interval_is_the_t_distributions():
    """There are five values, so t at 97.5 % with 4 degrees of freedom is 2.776445."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    half = 2.776445 * math.sqrt(2.5)
    assert seeds.interval(values) == pytest.approx([3 - half * math.sqrt(1 / 5), 3 + half * math.sqrt(1 / 5)], rel=1e-5)
    wider = half * math.sqrt(1 / 5 + 1 / 4)
    assert seeds.interval(values, 1 / 4) == pytest.approx([3 - wider, 3 + wider], rel=1e-5)
    assert seeds.interval([2.0, 2.0]) == [2.0, 2.0]
    assert seeds.interval([2.0]) is None


def test_the_interval_of_a_share_is_cut_at_its_bounds():
    """Two accuracies of 90 % and 100 % have a t interval of 31 % to 159 %."""
    assert bounds(CONFIG, "eval/accuracy") == (0.0, 1.0)
    assert bounds(CONFIG, "eval/loss") == seeds.UNBOUNDED
    assert seeds.interval([0.9, 1.0], within=(0.0, 1.0)) == pytest.approx([0.3146898, 1.0])
    assert seeds.interval([0.9, 1.1], within=(0.0, 1.0))[1] > 1.1, "a value beyond the bounds shows that they are wrong"
    folds = [{"metrics": {"eval/accuracy": value, "eval/loss": value}, "reason": ""} for value in (0.0, 0.1)]
    found = cross_validation.summarize(CONFIG, {"folds": folds, "k": 2})
    assert found["eval/accuracy"]["corrected"][0] == 0.0 > found["eval/loss"]["corrected"][0]
    assert seeds.paired([0.0, 0.1], [1.0, 0.9], most=1.0)["interval"][1] == 1.0


def test_what_has_no_folds_is_one_line():
    for data, message in (
        (
            MixtureData(parts=(CONFIG.data, CONFIG.data), stages=(Stage(0, (1.0, 1.0)),)),
            "MixtureData has no source of records, so that none",
        ),
        (PromptData(), "PromptData has no end, so that none of its records"),
        (TextClassificationData(evaluate_on="test"), "data.evaluate_on = 'test' would evaluate every fold on the same"),
        (dataclasses.replace(CONFIG.data, source=HeldOutFold(CONFIG.data.source)), "data.source is one fold already"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            cross_validation.configured(dataclasses.replace(CONFIG, data=data), Folds(3), 0)
        assert "\n" not in str(caught.value)


def test_data_without_labels_is_folded_by_chance():
    config = cross_validation.configured(dataclasses.replace(CONFIG, data=TextData()), Folds(3), 1)
    assert (config.data.source.stratify, config.data.source.fold) == ("", 1)
    assert cross_validation.configured(CONFIG, Folds(3, stratify=False), 0).data.source.stratify == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "81"], "--k 81: 81 folds of 80 different records or groups"),
        (["--k", "1"], "k = 1; it must be 2 or more"),
        (["--together", "patient"], "--together = 'patient': "),
        (["--metric", "acuracy"], "--metric acuracy is unknown (perhaps you meant 'eval/accuracy')"),
        (["--stratify", "label"], "allowed: 'labels', 'none' (perhaps you meant 'labels')"),
        (["--folds", "3"], "Unrecognized options: --folds"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(capsys, tmp_path, options, message):
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "cross-validate",
                str(FILE),
                "--run_dir",
                str(tmp_path / "run"),
                "--data.cache_dir",
                str(tmp_path / "c"),
                *options,
            ]
        )
    said = capsys.readouterr().err
    assert (caught.value.code, len(said.strip().splitlines())) == (2, 1)
    assert message in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_folds_share_one_program_and_a_finished_one_is_not_repeated(tmp_path, monkeypatch):
    compiled, compile_step = [], fits.compile_step
    monkeypatch.setattr(fits, "compile_step", lambda *args: compiled.append(1) or compile_step(*args))
    config, run_dir = config_of(tmp_path), tmp_path / "run"
    found = cross_validation.cross_validate(config, Folds(4), *LOSS, run_dir, print)
    assert len(compiled) == 1, "which rows are held out is no part of the program"
    before = [(path, path.stat().st_mtime_ns) for path in sorted(run_dir.glob("folds/*/checkpoints/*"))]
    again = cross_validation.cross_validate(config, Folds(4), *LOSS, run_dir, print)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(run_dir.glob("folds/*/checkpoints/*"))] == before
    assert again["summary"] == found["summary"]
    alone = cross_validation.configured(config, Folds(4), 2)
    main(["train", str(run_dir / "folds/2"), "--run_dir", str(tmp_path / "alone")])
    last = json.loads((tmp_path / "alone/metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/loss"] == found["folds"][2]["metrics"]["eval/loss"], "a fold is an ordinary run"
    assert config_file.load(run_dir / "folds/2").data == alone.data
    page = build_report([run_dir], tmp_path / "folds.html").read_text()
    assert all(f"Fold {n}" in page for n in range(4))


@pytest.mark.exhaustive
def test_digits_folds_killed_and_resumed_end_as_without_a_kill(tmp_path):
    """The command is killed in its second fold and then finished. Its figures equal those of an
    unbroken run and of each fold's own run."""
    short = [
        "--train.steps",
        "120",
        "--optim.warmup_steps",
        "10",
        "--checkpoint.every",
        "20",
        "--report.tensorboard",
        "False",
    ]
    command = ["cross-validate", str(ROOT / "configs/mnist_mlp.py"), "--k", "3", "--metric", "accuracy", *short]
    main([*command, "--run_dir", str(tmp_path / "whole")])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *command, "--run_dir", str(tmp_path / "killed")],
        env=os.environ,
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    while not list((tmp_path / "killed/folds/1/checkpoints").glob("[0-9]*")) and time.monotonic() < end:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = (tmp_path / "killed/folds/0/metrics.jsonl").read_bytes()
    assert len(json.loads((tmp_path / "killed/folds.json").read_text())["folds"]) == 1
    main([*command, "--run_dir", str(tmp_path / "killed")])
    assert (tmp_path / "killed/folds/0/metrics.jsonl").read_bytes() == kept, "the first fold is not repeated"
    whole, killed = (json.loads((tmp_path / name / "folds.json").read_text()) for name in ("whole", "killed"))
    assert killed["summary"] == whole["summary"]
    accuracy = whole["summary"]["eval/accuracy"]
    assert accuracy["mean"] > 0.85
    assert accuracy["mean"] == pytest.approx(np.mean([fold["value"] for fold in whole["folds"]]))
    assert (tmp_path / "killed/folds.html").is_file()
