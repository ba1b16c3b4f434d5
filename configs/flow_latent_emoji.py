"""`configs/flow_emoji.py` among the latents of `runs/vae_emoji`, which is trained first.

A latent has 8x8 pixels, so that patches of 2x2 give 16 image tokens instead of 64. The run takes 48
minutes on 2 busy cores. By benchmarks/flow_emoji.py a CLIP has the right one of 190 held-out names
among its first five for 26.8% of the drawn pictures, and for 34.2% of the real ones (one seed).
`objective.latent_scale` is 1 / latent_std of the autoencoder's run.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.objectives import LatentFlow
from configs import flow_emoji, vae_emoji


def get_config() -> Config:
    config = flow_emoji.get_config()
    model = dataclasses.replace(config.model, image_shape=(8, 8, 4), patch_size=2, position_grid=4)
    # The autoencoder's model is given here, so that the config needs no folder to be read.
    autoencoder = vae_emoji.get_config().model
    objective = LatentFlow(autoencoder="runs/vae_emoji", autoencoder_model=autoencoder, latent_scale=0.663)
    train = dataclasses.replace(config.train, steps=4000)
    return dataclasses.replace(config, model=model, objective=objective, train=train)
