"""A small ViT (130 thousand parameters) on 5,000 MNIST digits: 97.0 % test accuracy (one seed).

54 CPU seconds from start to report on 2 cores; 4,000 training images, 1,000 test images. With so
few images a convolutional network of 99 thousand parameters reaches more (mnist_cnn.py).
"""

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.models import Compute
from bigmodel_jax.models.vit import ViTConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=ViTConfig(
            image_shape=(28, 28, 1),
            num_classes=10,
            patch_size=7,
            num_layers=3,
            embed_dim=64,
            num_heads=4,
            mlp_dim=192,
            norm_eps=1e-6,
            init_std=0.1,  # near 1/sqrt(embed_dim): the usual 0.02 is too small at this width
            compute=Compute(unroll=True),
        ),
        objective=Classification(),
        data=ImageData(max_shift=2),
        optim=OptimConfig(lr=3e-3, warmup_steps=100, weight_decay=0.1, final_lr_ratio=0.0),
        train=TrainConfig(steps=1200, batch_size=64),  # 19 epochs
    )
