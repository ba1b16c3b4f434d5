"""A Flax module of one's own, trained on 5,000 MNIST digits.

Nothing in the module knows this project.
"""

import dataclasses

from flax import nnx

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data import ImageData, Tfds
from bigmodel_jax.models import ModelConfig, from_nnx
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig


class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(28 * 28, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, image):
        x = self.hidden(image.reshape(image.shape[0], -1))
        return self.head(self.dropout(nnx.relu(self.norm(x))))


@dataclasses.dataclass(frozen=True)
class NetConfig(ModelConfig):
    width: int = 256

    def make(self):
        return from_nnx(lambda rngs: Net(self.width, rngs), inputs=lambda batch: (batch["image"],))


def get_config() -> Config:
    return Config(
        model=NetConfig(),
        objective=Classification(),
        data=ImageData(source=Tfds("mnist_5k")),
        optim=OptimConfig(lr=2e-3, warmup_steps=20),
        train=TrainConfig(steps=200, batch_size=64),
    )
