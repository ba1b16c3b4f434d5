"""A small discrete autoencoder (0.9 million parameters) of 1,713 emoji of 32x32 pixels.

An image becomes 8x8 codes of 512. `configs/dalle_emoji.py` writes such codes after a name.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models import DiscreteAutoencoderConfig
from bigmodel_jax.objectives import DiscreteAutoencoding
from configs import vae_emoji


def get_config() -> Config:
    config = vae_emoji.get_config()
    train = dataclasses.replace(config.train, steps=800)
    model = DiscreteAutoencoderConfig(
        image_shape=(32, 32, 3),
        channels=(32, 64, 64),
        blocks_per_level=1,
        latent_channels=3,
        levels=8,  # 8 ** 3 = 512 codes
        norm_groups=8,
    )
    return dataclasses.replace(config, model=model, objective=DiscreteAutoencoding(), train=train)
