"""A convolutional network (99 thousand parameters) on 5,000 MNIST digits: 98.4 to 98.5 % test
accuracy.

These are two seeds. 55 CPU seconds from start to report on 2 cores; 4,000 training images, 1,000
test images. `--model.door linen` uses the same network written in Linen instead of NNX.
"""

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.models.cnn import CNNConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=CNNConfig(channels=(16, 32, 64), hidden_dim=128, dropout=0.3),
        objective=Classification(),
        data=ImageData(max_shift=2),
        # Strong weight decay: with 4,000 images it beat 0.05 at each of three seeds, by a third of
        # a point on average.
        optim=OptimConfig(lr=3e-3, warmup_steps=75, weight_decay=1.0, final_lr_ratio=0.01),
        train=TrainConfig(steps=750, batch_size=64),  # 12 epochs
    )
