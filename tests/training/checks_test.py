"""What does not fit is one line before anything is compiled; what generates images says so on the
run's page."""

import base64
import dataclasses
import json
import shutil
from typing import ClassVar

import numpy as np
import pytest

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, EvalConfig, ImageSampleConfig, SampleConfig, TrainConfig
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import Arrays, DataConfig, ImageData, TextData, TokenizerConfig
from bigmodel_jax.data.tokenizers.tokenizers import make_bytes
from bigmodel_jax.models import CLIPConfig, DiTConfig, LlamaConfig, TextToImageConfig
from bigmodel_jax.objectives import Contrastive, Diffusion, Objective
from bigmodel_jax.training.beginning import check_tokenizers
from bigmodel_jax.training.checks import check_data, check_images, check_sample
from bigmodel_jax.training.run import train


@dataclasses.dataclass(frozen=True)
class Needs(DataConfig):
    """Data that asks for one field of the model."""

    required_by: ClassVar = {"text.vocab_size": "tokenizer", "text.max_seq_len": "seq_len", "eos_token_id": "tokenizer"}

    name: str = ""
    value: int | tuple = 0

    def requirements(self):
        return {self.name: self.value}


@pytest.mark.parametrize(
    ("model", "name", "fitting", "wrong", "message"),
    [
        (CLIPConfig, "text.vocab_size", 60, 65, r"model\.text\.vocab_size = 64, .* at least 65 \(data\.tokenizer\)"),
        (CLIPConfig, "text.max_seq_len", 16, 17, r"model\.text\.max_seq_len = 16, .* at least 17 \(data\.seq_len\)"),
        (CLIPConfig, "eos_token_id", 63, 62, r"model\.eos_token_id = 63, but the data needs 62 \(data\.tokenizer\)"),
        (CLIPConfig, "vision.image_shape", (8, 8, 1), (8, 8, 3), r"image_shape = \(8, 8, 1\), .* needs \(8, 8, 3\)"),
        (TextToImageConfig, "text.vocab_size", 64, 65, r"model\.text\.vocab_size = 64, .* at least 65"),
        (TextToImageConfig, "image_shape", (8, 8, 1), (9, 8, 1), r"model\.image_shape = \(8, 8, 1\)"),
    ],
)
def test_a_towers_fields_are_checked_against_the_data(model, name, fitting, wrong, message):
    for objective in (Contrastive(), Diffusion()):
        check_data(Config(model.tiny(), objective, Needs(name=name, value=fitting)))
    with pytest.raises(ValueError, match=message):
        check_data(Config(model.tiny(), Contrastive(), Needs(name=name, value=wrong)))


def test_a_model_without_that_field_needs_nothing():
    check_data(Config(DiTConfig.tiny(), Diffusion(), Needs(name="text.vocab_size", value=99)))


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"steps": 0}, (8, 8, 1), r"eval\.images\.steps = 0; it must be 1 or more"),
        ({"steps": 1001}, (8, 8, 1), r"eval\.images\.steps = 1001; it must be at most objective\.num_steps = 1000"),
        ({"num": -1}, (8, 8, 3), r"eval\.images\.num = -1; it must be 0 or more"),
        ({}, (8, 8, 4), r"eval\.images\.num = 4: images of shape \(8, 8, 4\) cannot be shown; give 0"),
    ],
)
def test_images_that_cannot_be_made_are_refused(change, shape, message):
    model = dataclasses.replace(DiTConfig.tiny(), image_shape=shape)
    config = Config(model, Diffusion(), DataConfig())
    with pytest.raises(ValueError, match=message):
        check_images(config, ImageSampleConfig(**{"num": 4} | change), prefix="eval.images.")


def test_images_that_can_be_made_are_not():
    check_images(Config(DiTConfig.tiny(), Diffusion(), DataConfig()), ImageSampleConfig(num=4))


def digits():
    rng = np.random.default_rng(0)
    split = {"image": rng.integers(0, 256, (12, 8, 8, 1), np.uint8), "label": np.arange(12) % 3}
    return {"train": split, "validation": split}


@pytest.mark.slow
def test_a_run_of_a_denoiser_ends_with_its_images_on_the_page(tmp_path):
    data = ImageData(cache_dir=str(tmp_path / "cache"), source=Arrays(f"{__name__}:digits"), num_classes=10)
    config = Config(
        model=DiTConfig.tiny(),
        objective=Diffusion(),
        data=data,
        parallel=ParallelConfig(data=2, fsdp=4),
        train=TrainConfig(steps=2, batch_size=8),
        eval=EvalConfig(images=ImageSampleConfig(num=3, steps=2)),
    )
    scalars = train(config, tmp_path / "run")
    assert {"eval/loss", "eval/unconditional_loss"} <= set(scalars)
    png = (tmp_path / "run" / "samples" / "00000002.png").read_bytes()
    assert png[:4] == b"\x89PNG"
    assert base64.b64encode(png).decode() in (tmp_path / "run" / "report.html").read_text()


def test_a_prompt_that_is_no_utf8_text_is_refused():
    """The interpreter hands over bytes of the command line that are no UTF-8 in this form."""
    sample = SampleConfig(prompt=b"caf\xe9".decode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        check_sample(config_file.load("configs/lm_tiny.py"), sample, make_bytes())


@dataclasses.dataclass(frozen=True)
class Taught(Objective):
    teacher: str = ""

    def sources(self):
        return {"teacher": self.teacher}


def test_a_teacher_of_as_many_tokens_but_others_is_one_line(tmp_path):
    tokenizer = TokenizerConfig(path=str(tmp_path / "own" / "tokenizer.json"))
    (tmp_path / "own").mkdir()
    make_bytes().save(tmp_path / "own" / "tokenizer.json")
    shutil.copytree(tmp_path / "own", tmp_path / "teacher")
    config = Config(LlamaConfig.tiny(), Taught(f"{tmp_path}/teacher@3"), TextData(tokenizer=tokenizer))
    check_tokenizers(config)
    path = tmp_path / "teacher" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = (next(name for name, n in vocabulary.items() if n == number) for number in (100, 101))
    vocabulary[a], vocabulary[b] = 101, 100
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="objective.teacher = .*: the teacher has another vocabulary: its token 100 is"
    ) as error:
        check_tokenizers(config)
    assert "\n" not in str(error.value)
