"""Every field of a config, one at a time: may it differ when a run is continued?"""

import dataclasses

import pytest

from bigmodel_jax.config import Config, EvalConfig, SampleConfig, flat
from bigmodel_jax.core.sharding import Rules
from bigmodel_jax.data import ImageData, TextData, TextFiles
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.training import run_folder

CONFIG = Config(LlamaConfig.tiny(), NextToken(), TextData(source=TextFiles("a", "b")))
# Each of these, or what is below it; nothing else.
FREE = {
    *("train.steps", "train.epochs", "train.log_every", "train.max_skipped", "train.max_step_seconds", "train.profile"),
    *("data.cache_dir", "objective.logits"),
    "model.compute",
    *("parallel", "eval", "checkpoint", "report"),
}


def changed(value, names: list[str]):
    """The dataclass with one field, by its dotted name, replaced by something that is no value of
    it."""
    old = getattr(value, names[0])
    new = changed(old, names[1:]) if names[1:] else f"not {old}"
    copy = object.__new__(type(value))  # without the class's own checks
    for field in dataclasses.fields(value):
        object.__setattr__(copy, field.name, new if field.name == names[0] else getattr(value, field.name))
    return copy


# Without the classes' names, which stand at the paths of parts.
FIELDS = [name for name in flat(CONFIG) if "." in name and not any(n.startswith(f"{name}.") for n in flat(CONFIG))]


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_may_differ_or_makes_another_run(name):
    parts = name.split(".")
    other = changed(CONFIG, parts)
    free = any(".".join(parts[: n + 1]) in FREE for n in range(len(parts)))
    assert set(run_folder.differences(CONFIG, other)) == (set() if free else {name})


@pytest.mark.parametrize("room", ["model", "objective", "data", "optim", "train", "precision"])
def test_another_class_makes_another_run(room):
    @dataclasses.dataclass(frozen=True)
    class Other(type(getattr(CONFIG, room))):
        pass

    value = getattr(CONFIG, room)
    other = Other(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    assert room in run_folder.differences(CONFIG, dataclasses.replace(CONFIG, **{room: other}))


def test_a_name_that_only_begins_like_a_free_one_is_not_free(monkeypatch):
    names = ["evaluation", "evaluation.every", "parallelism", "train.steps_per_epoch", "data.cache_dir_of_others"]
    names += [
        "model.computed.remat",
        "data.compute.remat",
        "reports.html",
        "objective.logits_scale",
        "train.stepsize",
        "checkpoints",
    ]
    monkeypatch.setattr(run_folder, "flat", dict)
    old, new = ({name: n for name in names} for n in (0, 1))
    assert run_folder.differences(old, new) == {name: (0, 1) for name in names}
    for free in ("eval.every", "parallel.rules.vocab", "report.tensorboard", "train.steps", "eval"):
        assert run_folder.differences({free: 0}, {free: 1}) == {}


def test_a_field_that_only_one_of_two_has_is_a_difference():
    assert run_folder.differences(CONFIG, dataclasses.replace(CONFIG, data=ImageData())).keys() >= {
        "data",
        "data.seq_len",
        "data.max_shift",
    }


def test_what_lies_deep_in_a_free_part_is_free():
    parallel = dataclasses.replace(CONFIG.parallel, rules=Rules(vocab=None), tensor=2)
    sampled = EvalConfig(sample=SampleConfig(prompt="x"))
    assert run_folder.differences(CONFIG, dataclasses.replace(CONFIG, parallel=parallel, eval=sampled)) == {}
