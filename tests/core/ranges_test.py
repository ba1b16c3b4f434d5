"""A field says what it may hold, and the command line, Python and JSON are held to it alike."""

import dataclasses
import importlib
import json
import math
import pkgutil
import pydoc
import typing
from typing import Annotated, Literal

import pytest

import bigmodel_jax
from bigmodel_jax import config_file
from bigmodel_jax.config import Config, override
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import ranges
from bigmodel_jax.core.ranges import (
    AtLeastOne,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    ProperShare,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
)
from bigmodel_jax.data import ChatData, DataConfig, ImageData
from bigmodel_jax.data.images.augment import Augmentation
from bigmodel_jax.data.images.mix import Mix
from bigmodel_jax.models import MODELS, LlamaConfig, MLPConfig
from bigmodel_jax.objectives import OBJECTIVES, Classification, Objective
from bigmodel_jax.optim import OptimConfig

NAN, INF = math.nan, math.inf

# declaration -> (values inside, values outside)
BORDERS = {
    Count: ([1, 7], [0, -1]),
    CountOrZero: ([0, 1], [-1]),
    Seed: ([0, 2**32 - 1], [-1, 2**32, 10**30]),
    Positive: ([1e-300, 3], [0, 0.0, -1.0, NAN, INF]),
    NonNegative: ([0, 1.5], [-1e-9, NAN, INF, -INF]),
    AtLeastOne: ([1, 1.0, 8.5], [0.99, NAN]),
    Share: ([0, 1, 0.5], [-0.1, 1.1, NAN]),
    ShareBelowOne: ([0, 0.999], [1, 1.0, -0.1, NAN]),
    ShareAboveZero: ([1, 0.001], [0, 1.001, NAN]),
    ProperShare: ([0.001, 0.999], [0, 1, NAN]),
}


@pytest.mark.parametrize("hint", BORDERS, ids=lambda h: h.__metadata__[0].text)
def test_a_range_holds_its_borders_and_refuses_what_lies_beyond(hint):
    inside, outside = BORDERS[hint]
    for value in inside:
        ranges.check_value("x", value, hint)
    for value in outside:
        with pytest.raises(ValueError, match=r"^x = .*; it must be ") as error:
            ranges.check_value("x", value, hint)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (NAN, float),
        (INF, float),
        (True, Count),
        ("3", Count),
        (1.0, Count),
        (None, Count),
        ("a", bool),
        ((1.0,), tuple[float, float]),
        ((0.9, 1.0), tuple[ShareBelowOne, ShareBelowOne]),
        (3, tuple[Count, ...]),
        ((1, 0), tuple[Count, ...]),
        ("low", Literal["high", "none"]),
        (5, OptimConfig),
        (Classification(), OptimConfig),
        (5, OptimConfig | None),
    ],
)
def test_a_value_of_another_kind_is_refused(value, hint):
    with pytest.raises(ValueError, match=r"^x = "):
        ranges.check_value("x", value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, float),
        (None, OptimConfig | None),
        ((), tuple[Count, ...]),
        ([1, 2], tuple[Count, ...]),
        ("high", Literal["high"]),
    ],
)
def test_a_value_of_its_kind_is_taken(value, hint):
    ranges.check_value("x", value, hint)


BASE = Config(MLPConfig(), Classification(), ImageData())
BAD = {"optim.lr": NAN, "optim.weight_decay": INF, "optim.eps": -1.0, "train.seed": 2**64, "train.steps": 0}


@pytest.mark.parametrize("name", BAD)
def test_python_json_and_the_command_line_refuse_the_same_value_in_the_same_words(name, tmp_path):
    part, field = name.split(".")
    bad = dataclasses.replace(BASE, **{part: dataclasses.replace(getattr(BASE, part), **{field: BAD[name]})})
    said = []
    with pytest.raises(ValueError) as error:
        validate(bad)
    said.append(str(error.value))
    with pytest.raises(ValueError) as error:
        override(BASE, [f"--{name}={BAD[name]}"])
    said.append(str(error.value))
    (tmp_path / "config.json").write_text(json.dumps(config_file.to_json(bad)))
    with pytest.raises(ValueError) as error:
        config_file.load(tmp_path)
    said.append(str(error.value).partition(": ")[2].replace("OptimConfig", "optim").replace("TrainConfig", "train"))
    assert len(set(said)) == 1, said


# Modules that run in an environment of their own, whose packages conflict with the lock.
ELSEWHERE = (
    "bigmodel_jax.data.corpus.beam",
    "bigmodel_jax.export.onnx_worker",
    "bigmodel_jax.export.litert_worker",
    "bigmodel_jax.export.use.",
)


def config_classes():
    """Every frozen dataclass of the package that is, or lies in, a Config, and those of the verbs'
    own options."""
    for module in pkgutil.walk_packages(bigmodel_jax.__path__, "bigmodel_jax."):
        if not module.name.startswith(ELSEWHERE):
            importlib.import_module(module.name)
    from bigmodel_jax.cluster.place import ClusterConfig
    from bigmodel_jax.cluster.submit import Gcloud, Kubernetes, Ray, Slurm

    found, todo = set(), [Config, ClusterConfig, Gcloud, Kubernetes, Ray, Slurm, *MODELS.values(), *OBJECTIVES.values()]
    todo += [c for base in (DataConfig, Objective, Augmentation, Mix) for c in subclasses(base)]
    while todo:
        cls = todo.pop()
        if cls in found or not cls.__module__.startswith("bigmodel_jax"):
            continue
        found.add(cls)
        for hint in typing.get_type_hints(cls).values():
            todo += [c for c in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(c)]
    return sorted(found, key=lambda c: c.__qualname__)


def subclasses(cls):
    return [cls] + [c for child in cls.__subclasses__() for c in subclasses(child)]


# What may be any finite number, or has rules of its own.
ANY = {
    *("swiglu_alpha", "logit_scale_init", "logit_bias_init", "offset", "reward_weights", "mean", "time_mean"),
    "latent_offset",
    "feature_layer",  # counted from the end, with a check of its own
    "process_id",  # -1: the environment says it
}


def test_every_whole_number_and_every_real_of_a_config_has_a_range():
    lacking = []
    for cls in config_classes():
        for field in dataclasses.fields(cls):
            hint = ranges.hints(cls)[field.name]
            kinds = [hint, *(typing.get_args(hint) if typing.get_origin(hint) is tuple else ())]
            if any(kind in (int, float) for kind in kinds) and field.name not in ANY:
                lacking.append(f"{cls.__name__}.{field.name}")
    assert not lacking


def test_every_default_lies_in_its_range():
    for cls in config_classes():
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                ranges.check_value(f"{cls.__name__}.{field.name}", field.default, ranges.hints(cls)[field.name])


def test_a_part_without_a_name_of_its_own_is_left_out_of_messages():
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        part: Annotated[OptimConfig, tyro.conf.arg(name="")]

    with pytest.raises(ValueError, match=r"^lr = nan"):
        ranges.check(Arguments(OptimConfig(lr=NAN)))


@pytest.mark.parametrize(
    ("cls", "field"),
    [
        (LlamaConfig, "num_layers: Annotated[int, 1 or more and at most 10000] = 32"),
        (OptimConfig, "lr: Annotated[float, 0 or more] = 0.0003"),
        (ChatData, "seq_len: Annotated[int, 1 or more] = 1024"),
    ],
)
def test_help_writes_a_range_in_the_words_of_its_message(cls, field):
    said = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    assert field in said
    assert "least=" not in said
