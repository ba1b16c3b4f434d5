"""A small discrete autoencoder (0.9 million parameters) of 1,713 emoji of 32x32 pixels.

An image becomes 8x8 codes of 512. `configs/dalle_emoji.py` writes such codes after a name. The
codebook is that of VQ-VAE. The Gumbel-softmax of DALL-E needs a temperature that falls over the
run and a weight for its divergence, and both decide whether codes are used; the codebook has one
loss, and needs no schedule.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models import DiscreteAutoencoderConfig
from bigmodel_jax.objectives import DiscreteAutoencoding
from configs import vae_emoji


def get_config() -> Config:
    config = vae_emoji.get_config()
    model = DiscreteAutoencoderConfig(
        image_shape=(32, 32, 3),
        channels=(32, 64, 64),
        blocks_per_level=1,
        latent_channels=8,
        norm_groups=8,
        num_codes=512,
    )
    return dataclasses.replace(config, model=model, objective=DiscreteAutoencoding())
