"""A small ResNet (78 thousand parameters) on 5,000 MNIST digits: 97.7 % test accuracy (one seed).

67 CPU seconds from start to report on 2 cores; 4,000 training images, 1,000 test images.
"""

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.models.resnet import ResNetConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=ResNetConfig(
            image_shape=(28, 28, 1),
            num_classes=10,
            depths=(1, 1, 1),
            channels=(16, 32, 64),
            stem_channels=16,
            block="basic",
            stem="cifar",
        ),
        objective=Classification(),
        data=ImageData(max_shift=2),
        optim=OptimConfig(lr=3e-3, warmup_steps=50, weight_decay=1.0, final_lr_ratio=0.01),
        train=TrainConfig(steps=300, batch_size=64),  # nearly 5 epochs
    )
