"""The search space of mnist_mlp.py: learning rate, weight decay and layer sizes, in runs of 300
steps."""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.sweep.space import choice, log, uniform
from configs import mnist_mlp

SPACE = {
    "optim.lr": log(1e-4, 3e-2),
    "optim.weight_decay": uniform(0.0, 0.3),
    "model.hidden_dims": choice((128,), (256, 256)),
}


def get_config() -> Config:
    config = mnist_mlp.get_config()
    return dataclasses.replace(config, train=TrainConfig(steps=300, batch_size=64), eval=EvalConfig(every=50))
