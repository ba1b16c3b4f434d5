"""A small autoencoder (0.9 million parameters) of 1,713 emoji of 32x32 pixels.

Its latents have 8x8 pixels of 4 channels, a twelfth of the image's values.
`configs/flow_latent_emoji.py` trains among them. An evaluation reports their mean and standard
deviation, by which that config scales them.
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data import ImageTextData
from bigmodel_jax.models import AutoencoderConfig
from bigmodel_jax.objectives import Autoencoding
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=AutoencoderConfig(
            image_shape=(32, 32, 3),
            channels=(32, 64, 64),
            blocks_per_level=1,
            latent_channels=4,
            norm_groups=8,
        ),
        objective=Autoencoding(kl_weight=1e-3),
        data=ImageTextData(image_size=32, max_shift=2),
        optim=OptimConfig(lr=2e-3, warmup_steps=50, weight_decay=0.0, final_lr_ratio=0.05, ema_decay=0.99),
        train=TrainConfig(steps=600, batch_size=32),
        eval=EvalConfig(every=200),
    )
