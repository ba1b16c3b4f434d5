"""A multi-layer perceptron (270 thousand parameters) on 5,000 MNIST digits: 98.1 % test accuracy
(one seed).

27 CPU seconds from start to report on 2 cores; 4,000 training images, 1,000 test images.
"""

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.models.mlp import MLPConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=MLPConfig(hidden_dims=(256, 256), dropout=0.1),
        objective=Classification(),
        data=ImageData(max_shift=2),
        optim=OptimConfig(lr=2e-3, warmup_steps=100, weight_decay=0.1, final_lr_ratio=0.01),
        train=TrainConfig(steps=1500, batch_size=64),  # 24 epochs
    )
