"""A run whose objective has a head of its own is not written as programs of its model alone."""

import dataclasses

import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.data import PreferenceData, TextData
from bigmodel_jax.export.formats import FORMATS
from bigmodel_jax.export.subject import check_answers
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken, RewardModel

CONFIG = Config(model=LlamaConfig.tiny(), objective=RewardModel(), data=PreferenceData())


@pytest.mark.parametrize("name", ["stablehlo", "onnx", "litert"])
def test_a_reward_head_is_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=r"RewardModel computes its answer by a head of its own \(reward/kernel\)"):
        FORMATS[name].write(CONFIG, tmp_path, tmp_path / "out", "")


def test_a_model_that_answers_itself_is_written():
    check_answers(dataclasses.replace(CONFIG, objective=NextToken(), data=TextData()), "export")
