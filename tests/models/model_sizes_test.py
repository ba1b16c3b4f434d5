"""Sizes that do not fit each other or the mesh: one line that names option, value, and what is
allowed."""

import dataclasses
from typing import ClassVar

import pytest

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models import (
    MODELS,
    CLIPConfig,
    Compute,
    GPT2Config,
    LlamaConfig,
    ModelConfig,
    ResNetConfig,
    SiglipConfig,
    T5Config,
)
from bigmodel_jax.models.sizes import AtMost, Cut, Divides, Multiple, SameLength

WHOLE = "None leaves it whole on every device"
WHOLE_VOCAB = f"--parallel.rules.vocab {WHOLE}"


@dataclasses.dataclass(frozen=True)
class Part:
    width: Count = 8
    heads: Count = 2

    SIZES: ClassVar = (Divides("heads", "width"), Multiple("width", 4, "of which four are made"))


@dataclasses.dataclass(frozen=True)
class Own(ModelConfig):
    """A user's own model."""

    one: Part = Part()
    other: Part = Part()
    vocab: Count = 60
    pad: Count = 1
    most: Count = 3
    token: int = 2
    stages: tuple[Count, ...] = (4, 6)
    depths: tuple[Count, ...] = (1, 1)

    SIZES: ClassVar = (
        Cut("vocab", "vocab", pad="pad"),
        Cut("stages", "mlp"),
        SameLength("depths", "stages"),
        AtMost("token", "most", below=True),
        AtMost("most", "vocab"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one": Part(heads=3)}, "model.one.heads = 3 does not divide model.one.width = 8; allowed: its divisors"),
        ({"other": Part(6)}, "model.other.width = 6; it must be a multiple of 4: of which four are made"),
        ({"other": Part(0)}, "model.other.width = 0; it must be 1 or more"),
        (
            {"vocab": 61},
            f"model.vocab = 61 is not divisible by parallel.tensor = 2: --model.pad 2 pads it, or {WHOLE_VOCAB}",
        ),
        ({"pad": 7}, "model.vocab padded to multiples of model.pad = 7 = 63 is not divisible by parallel.tensor = 2"),
        ({"stages": (4, 5)}, f"model.stages = 5 is not divisible by parallel.tensor = 2: --parallel.rules.mlp {WHOLE}"),
        ({"depths": (1,)}, "model.depths = (1,) and model.stages = (4, 6) differ in length"),
        ({"token": 3}, "model.token = 3; it must be below model.most = 3"),
        ({"most": 61}, "model.most = 61; it must be at most model.vocab = 60"),
    ],
)
def test_what_cannot_be_is_one_line(change, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(Own(), **change).validate(ParallelConfig(tensor=2))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_fits_is_accepted():
    Own().validate(ParallelConfig(tensor=2))
    dataclasses.replace(Own(), vocab=61, pad=4, most=2, token=1).validate(ParallelConfig(tensor=2))
    dataclasses.replace(Own(), vocab=61, stages=(5, 5)).validate(
        ParallelConfig(tensor=2, rules=Rules(vocab=None, mlp=None))
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_facts_of_a_family_hold_for_its_small_model_and_name_its_own_fields(name):
    MODELS[name].tiny().validate(ParallelConfig())


@pytest.mark.parametrize("cls", [CLIPConfig, SiglipConfig])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_towers_are_checked_by_their_own_names(cls, tower):
    cfg = cls.tiny()
    odd = dataclasses.replace(cfg, **{tower: dataclasses.replace(getattr(cfg, tower), num_heads=5)})
    with pytest.raises(ValueError, match=rf"^model\.{tower}\.num_heads = 5 does not divide model\.{tower}\.embed_dim"):
        odd.validate(ParallelConfig())


def test_odd_heads_are_refused_where_they_turn_and_nowhere_else():
    with pytest.raises(ValueError, match=r"model.head_dim = 7; it must be a multiple of 2: rotary"):
        dataclasses.replace(LlamaConfig.tiny(), head_dim=7).validate(ParallelConfig())
    dataclasses.replace(GPT2Config.tiny(), embed_dim=28).validate(ParallelConfig())


def test_a_cut_names_the_field_that_does_not_divide():
    with pytest.raises(ValueError, match=r"^model\.stem_channels = 9 is not divisible by parallel\.tensor = 2"):
        dataclasses.replace(ResNetConfig.tiny(), stem_channels=9).validate(ParallelConfig(tensor=2))


def test_a_kind_of_attention_that_a_model_does_not_choose_is_refused():
    asked = dataclasses.replace(T5Config.tiny(), compute=Compute(remat="full", attention="splash"))
    with pytest.raises(
        ValueError, match=r"^model.compute.attention = 'splash'; the attention of T5Config has one implementation"
    ):
        asked.validate(ParallelConfig())
    dataclasses.replace(asked, compute=Compute(remat="full")).validate(ParallelConfig())
