import dataclasses
from pathlib import Path

import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import field_of, replaced
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.optim.groups import Group
from bigmodel_jax.sweep import space
from bigmodel_jax.sweep.space import choice, integers, log, uniform

FILE = Path(__file__).with_name("small_sweep.py")
CONFIG = config_file.load(FILE)


def written(tmp_path, text: str) -> Path:
    path = tmp_path / "space.py"
    path.write_text(f"from bigmodel_jax.sweep.space import *\n{text}\n")
    return path


def test_a_config_files_space_is_read():
    assert space.read(FILE, CONFIG) == {"optim.lr": log(1e-4, 1.0), "optim.weight_decay": uniform(0.0, 0.5)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no SPACE"),
        ("SPACE = {}", "has an empty SPACE"),
        ("SPACE = [1]", "has a list as SPACE"),
        (
            "SPACE = {'optim.lrr': log(1e-4, 1.0)}",
            "'optim.lrr' is no field of the config .perhaps you meant 'optim.lr'",
        ),
        ("SPACE = {3: uniform(0.0, 1.0)}", "'3' is no field of the config"),
        ("SPACE = {'weight_decay': uniform(0.0, 1.0)}", "perhaps you meant 'optim.weight_decay'"),
        ("SPACE = {'optim.weight_decay': uniform(-1.0, 1.0)}", "optim.weight_decay = -1.0; it must be 0 or more"),
        ("SPACE = {'train.batch_size': integers(0, 8)}", "train.batch_size = 0; it must be 1 or more"),
        (
            "SPACE = {'train.batch_size': uniform(1.5, 8.0)}",
            "train.batch_size = 1.5 is of type float; it must be a whole number",
        ),
        ("SPACE = {'optim.schedule': choice('cosine', 'cosin')}", "optim.schedule = 'cosin'; allowed: .*'cosine'"),
        ("SPACE = {'optim.lr': (1e-4, 1.0)}", "optim.lr: .* is none of uniform, log, integers, choice"),
    ],
)
def test_a_space_that_says_nothing_sound_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        space.read(written(tmp_path, text), CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [lambda: log(0.0, 1.0), lambda: log("a", "b"), lambda: uniform(2.0, 1.0), lambda: choice(), lambda: choice(1, 1)],
)
def test_a_dimension_without_an_inside_is_refused(make):
    with pytest.raises(ValueError):
        make()


def test_a_config_json_has_no_space():
    with pytest.raises(ValueError, match="is not a Python file; the search space SPACE"):
        space.read(Path("runs/a/config.json"), CONFIG)


def test_a_field_of_a_group_is_reached_by_its_number():
    optim = dataclasses.replace(CONFIG.optim, groups=(Group("head/.*"), Group(".*/bias", lr=0.1)))
    config = dataclasses.replace(CONFIG, optim=optim)
    changed = replaced(config, "optim.groups.1.lr", 0.5)
    assert (field_of(changed, "optim.groups.1.lr"), field_of(config, "optim.groups.1.lr")) == (0.5, 0.1)
    with pytest.raises(ValueError, match="'optim.groups.2.lr' is no field"):
        field_of(config, "optim.groups.2.lr")


def test_a_choice_may_be_of_tuples_and_parts():
    parts = choice(MLPConfig(hidden_dims=(8,)), MLPConfig(hidden_dims=(16, 16)))
    space.check(CONFIG, "model", parts)
    assert parts.labels == ("MLPConfig(hidden_dims=(8,))", "MLPConfig(hidden_dims=(16, 16))"), "a study keeps texts"
    assert space.text(parts) == f"choice({', '.join(parts.labels)})"
    assert space.configured(CONFIG, {"model": parts.values[1]}).model.hidden_dims == (16, 16)


def test_floats_alone_may_be_numbers_of_a_step():
    dimensions = {"a": log(0.1, 1.0), "b": choice(0.1, 0.2), "c": choice(1, 0.2), "d": integers(1, 3)}
    assert space.floats(dimensions) == ("a", "b")


def test_a_grid_is_every_combination_and_takes_no_range():
    dimensions = {"a": integers(1, 6, 2), "b": choice("x", (1, 2))}
    assert space.grid(dimensions) == [{"a": a, "b": b} for a in (1, 3, 5) for b in ("x", "(1, 2)")]
    with pytest.raises(ValueError, match="a grid takes choice"):
        space.grid({"a": uniform(0.0, 1.0)})
