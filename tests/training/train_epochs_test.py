"""`train.epochs`: how many steps they are, who may say them, and that a run knows steps alone."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest

import runs
from bigmodel_jax import cli, config_file
from bigmodel_jax.config import Config, TrainConfig, override
from bigmodel_jax.config_checks import validate
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.plan import estimate, topology
from bigmodel_jax.scaling import points
from bigmodel_jax.training import epochs
from bigmodel_jax.training.run import train
from loop_test import config_of, records, run, same


class Rows:
    def __init__(self, num: int):
        self.num = num

    def __len__(self) -> int:
        return self.num

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        raise AssertionError("no row is read to count them")


@dataclasses.dataclass(frozen=True)
class Counted(DataConfig):
    num: int = 0

    def open(self, split: str) -> Rows:
        return Rows(self.num)


@dataclasses.dataclass(frozen=True)
class Generated(Counted):
    endless: ClassVar[bool] = True


def config_with(data: DataConfig, **train) -> Config:
    return Config(MLPConfig.tiny(), Classification(), data, train=TrainConfig(**train))


@pytest.mark.parametrize(
    ("given", "rows", "batch", "steps"),
    [(1, 40, 8, 5), (3, 37, 8, 14), (0.5, 37, 8, 3), (0.1, 30, 3, 1), (0.7, 10, 7, 1), (2.0, 1, 64, 1)],
)
def test_steps_are_the_fewest_that_hold_all_rows_so_often(given, rows, batch, steps):
    config = epochs.resolve(config_with(Counted(num=rows), epochs=given, batch_size=batch))
    assert (config.train.steps, config.train.epochs) == (steps, None)
    assert epochs.resolve(config) is config, "a run of steps counts no rows"


def test_without_either_a_run_has_the_steps_it_always_had():
    assert (TrainConfig().steps, TrainConfig().epochs) == (1000, None)
    assert TrainConfig(epochs=2).steps is None


@pytest.mark.parametrize(
    ("data", "train", "says"),
    [
        (Counted(num=8), {"steps": 7, "epochs": 2}, "train.steps = 7 and train.epochs = 2 are both given; give one"),
        (
            Generated(num=8),
            {"epochs": 2},
            "train.epochs = 2: Generated has no last row; give train.steps",
        ),
    ],
    ids=["both", "no end"],
)
def test_what_says_no_number_of_steps_is_refused_in_one_line(data, train, says):
    for refuse in (validate, epochs.resolve):
        with pytest.raises(ValueError) as error:
            refuse(config_with(data, **train))
        assert str(error.value) == says


def test_a_warm_up_longer_than_the_epochs_is_refused_once_they_are_counted():
    config = config_with(Counted(num=16), epochs=1, batch_size=8)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_steps=3))
    validate(config)
    with pytest.raises(ValueError, match=r"optim\.warmup_steps = 3 is more than train\.steps = 2"):
        epochs.resolve(config)


@pytest.mark.parametrize(
    ("train", "args", "steps", "given"),
    [
        ({"steps": 7}, ["--train.epochs", "2"], None, 2.0),
        ({"steps": 7}, ["--train.epochs=0.5"], None, 0.5),
        ({"epochs": 3}, ["--train.steps", "9"], 9, None),
        ({"epochs": 3}, ["--train.seed", "1"], None, 3),
        ({"steps": 7}, ["--train.seed", "1"], 7, None),
        ({"steps": 7}, ["--train.steps", "9", "--train.epochs", "2"], 9, 2.0),
    ],
)
def test_an_option_takes_the_place_of_the_other_one_in_the_config(train, args, steps, given):
    found = override(config_with(Counted(), **train), args).train
    assert (found.steps, found.epochs) == (steps, given)


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "many"])
def test_a_number_of_epochs_that_is_none_is_refused(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(runs.write(tmp_path)), "--train.epochs", wrong])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "train.epochs" in said
    assert wrong in said
    assert "\n" not in said


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run_as_if_it_had_had_them_from_the_start(tmp_path):
    config = config_of(tmp_path)  # 37 rows in batches of 8

    def lasting(**train) -> Config:
        return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))

    for num, step in ((1, 5), (2, 10)):
        said, _ = run(lasting(steps=None, epochs=num), tmp_path / "run")
        written = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
        assert (written["steps"], written["epochs"]) == (step, None)
    assert "Resuming at step 5" in said
    run(lasting(steps=10), tmp_path / "whole")
    same(config, tmp_path / "run", tmp_path / "whole")
    assert records(tmp_path / "run")[10]["loss"] == records(tmp_path / "whole")[10]["loss"]
    assert config_file.load(tmp_path / "run", ["--train.epochs", "3"]).train.steps is None


@pytest.mark.slow
def test_fewer_epochs_than_a_run_has_are_refused(tmp_path):
    config = config_of(tmp_path)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=None, epochs=1))
    loop_config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=0.5))
    run(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"train\.steps = 3 is below step 5"):
        train(loop_config, tmp_path / "run")


class Asked(Exception):
    pass


def caught(config, *_):
    raise Asked(config.train)


def test_a_plan_and_a_scaling_benchmark_know_steps_alone(tmp_path, monkeypatch):
    config = config_with(Counted(num=40), epochs=2, batch_size=8)
    monkeypatch.setattr(estimate, "check_installed", lambda topology: None)
    monkeypatch.setattr(estimate, "compile_step", caught)
    with pytest.raises(Asked) as plan:
        estimate.make_plan(config, topology.parse("v5e:2x2", 1), name="x")
    monkeypatch.setattr(points, "make_points", caught)
    monkeypatch.setattr(config_file, "load", lambda target: config)
    with pytest.raises(Asked) as scale:
        cli.VERBS["scale"].run(["x.py", "--devices", "1"])
    for asked in (plan, scale):
        assert (asked.value.args[0].steps, asked.value.args[0].epochs) == (10, None)
