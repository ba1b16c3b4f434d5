"""A run on picture files with augmentation: resumed bit for bit, evaluated with its own mean and
spread, shown as trained."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import runs
from bigmodel_jax import config_file
from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.core.params import paths
from bigmodel_jax.core.sharding import make_mesh
from bigmodel_jax.data import ImageData, ImageFolders
from bigmodel_jax.data.images.augment import Colour, Erase, Flip, RandomResizedCrop, Rotate, Scale
from bigmodel_jax.data.images.mix import CutMix, Mixup
from bigmodel_jax.data.images.rand_augment import RandAugment
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.evaluate_saved import evaluate_run
from bigmodel_jax.training.run import train
from bigmodel_jax.training.saved import load_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for kind, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                low = 20 + 110 * kind
                image = rng.integers(low, low + 90, (rng.integers(20, 40), rng.integers(20, 40), 3), np.uint8)
                Image.fromarray(image).save(tmp_path / split / name / f"{number}.jpg")
    data = ImageData(
        source=ImageFolders(str(tmp_path / "train"), str(tmp_path / "validation")),
        num_classes=2,
        image_size=12,
        augment=(RandomResizedCrop(), Flip(), Rotate(), Scale(), Colour(), RandAugment(num=1), Erase()),
        mix=(Mixup(), CutMix()),
        normalise="train",
        cache_dir=str(tmp_path / "cache"),
    )
    return Config(
        model=MLPConfig(image_shape=(12, 12, 3), num_classes=2, hidden_dims=(16,)),
        objective=Classification(label_smoothing=0.1),
        data=data,
        train=TrainConfig(steps=6, batch_size=8),
        eval=EvalConfig(every=6),
        checkpoint=CheckpointConfig(every=3),
        optim=OptimConfig(schedule="constant"),
    )


def test_a_run_is_resumed_evaluated_and_shown_as_it_was_trained(config, tmp_path):
    scalars = train(config, tmp_path / "whole")
    train(config, runs.killed(tmp_path / "whole", 6, tmp_path / "parts"))
    mesh = make_mesh(config.parallel)
    whole, parts = (paths(load_weights(config, tmp_path / name, mesh)[0]) for name in ("whole", "parts"))
    for path in whole:
        np.testing.assert_array_equal(whole[path], parts[path])

    page = (tmp_path / "whole" / "report.html").read_text()
    shown = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert len(shown) == 8
    assert any(re.fullmatch(r"(dark|light) 0\.\d\d \+ (dark|light) 0\.\d\d", title) for title in shown)

    again = config_file.load(tmp_path / "whole")
    assert again.data == config.data
    assert evaluate_run(again, tmp_path / "whole")[1]["eval/loss"] == pytest.approx(scalars["eval/loss"], rel=1e-6)
    kept = json.loads((tmp_path / "whole" / "scaling.json").read_text())["image"]
    for path in (tmp_path / "train" / "dark").iterdir():  # what the training split is now has no say
        Image.new("RGB", (30, 30), (9, 9, 9)).save(path)
    assert list(again.data.open("train").channels.mean) != kept["mean"]
    assert evaluate_run(again, tmp_path / "whole")[1]["eval/loss"] == pytest.approx(scalars["eval/loss"], rel=1e-6)
