"""A sweep of a second: a tiny MLP on pictures whose labels a linear map gives."""

import numpy as np

from bigmodel_jax.config import Config, EvalConfig, ReportConfig, TrainConfig
from bigmodel_jax.data import ImageData
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.sweep.space import log, uniform

SPACE = {"optim.lr": log(1e-4, 1.0), "optim.weight_decay": uniform(0.0, 0.5)}


def make_arrays():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(64, 10))

    def split(num):
        images = rng.integers(0, 256, (num, 8, 8, 1), np.uint8)
        return {"image": images, "label": ((images.reshape(num, 64) / 255 - 0.5) @ truth).argmax(-1)}

    return {"train": split(80), "validation": split(40)}


def get_config() -> Config:
    return Config(
        MLPConfig.tiny(),
        Classification(),
        ImageData(source=Arrays(make_arrays)),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=6, batch_size=8),
        eval=EvalConfig(every=2),
        report=ReportConfig(tensorboard=False),
    )
