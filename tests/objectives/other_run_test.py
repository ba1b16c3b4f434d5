"""The model of another run, as an objective's field names it: what is read, and what is one
line."""

import dataclasses

import pytest

from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import Distillation
from bigmodel_jax.objectives.latent_flow import LatentFlow
from bigmodel_jax.objectives.other_run import model_of


@pytest.mark.parametrize(
    "text", ["[1]", "7", "null", "{}", '{"model": 7}', '{"model": null}', "not JSON", "[" * 100_000]
)
def test_a_config_without_a_model_is_no_runs(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"^objective.teacher = '.*' is not a run's folder; [^\n]*$"):
        model_of(str(tmp_path), "objective.teacher")


@pytest.mark.parametrize(
    ("objective", "model", "name"),
    [(Distillation, "teacher_config", "teacher"), (LatentFlow, "autoencoder_config", "autoencoder")],
)
def test_a_model_without_the_run_that_has_its_weights_is_refused(objective, model, name):
    made = dataclasses.replace(objective(), **{f"{name}_model": LlamaConfig.tiny()})
    with pytest.raises(ValueError, match=f"^objective.{name} = '': give the folder of a run$"):
        getattr(made, model)()


def test_a_model_in_the_config_stands_for_the_folders(tmp_path):
    assert model_of("runs/nowhere", "objective.teacher", LlamaConfig.tiny()) == LlamaConfig.tiny()
