"""A run whose objective has parameters of its own: a head that answers is refused, what only trains
is left out."""

import dataclasses

import pytest

from bigmodel_jax.config import Config
from bigmodel_jax.data import PreferenceData
from bigmodel_jax.export.formats import FORMATS
from bigmodel_jax.export.subject import check_answers, without_aids
from bigmodel_jax.models import GPT2Config, LlamaConfig
from bigmodel_jax.objectives import Distillation, RewardModel
from bigmodel_jax.training.checks import check_continues

CONFIG = Config(model=LlamaConfig.tiny(), objective=RewardModel(), data=PreferenceData())


@pytest.mark.parametrize("name", ["stablehlo", "onnx", "litert"])
def test_a_reward_head_is_one_line(name, tmp_path):
    with pytest.raises(ValueError, match=r"RewardModel computes its answer by a head of its own \(reward\)"):
        FORMATS[name].write(CONFIG, tmp_path, tmp_path / "out", "")


def test_a_format_that_holds_the_tree_holds_the_head():
    assert "reward" in without_aids(CONFIG).spec


def test_a_reward_model_is_not_served_as_a_model_that_writes():
    with pytest.raises(ValueError, match=r"^serve: a run of RewardModel continues no texts; it scores texts; [^\n]*$"):
        check_continues(CONFIG.objective, "serve")


def test_a_teacher_and_the_map_to_its_width_are_no_part_of_a_distilled_model():
    wide = dataclasses.replace(GPT2Config.tiny(), embed_dim=48)
    layers = {"student_layers": (0, 1), "teacher_layers": (0, 1)}
    objective = Distillation(teacher="runs/teacher", teacher_model=wide, **layers)
    config = dataclasses.replace(CONFIG, objective=objective)
    check_answers(config, "export")
    assert config.make_model().spec.keys() > CONFIG.model.make().spec.keys()
    assert without_aids(config).spec.keys() == CONFIG.model.make().spec.keys()
