"""`configs/flow_emoji.py` among the latents of `runs/vae_emoji`, which is trained first.

A latent has 8x8 pixels, so that a patch is one of them, and a step costs what it costs among the
pixels with patches of 4x4. `objective.latent_scale` is 1 / latent_std of the autoencoder's run.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.objectives import LatentFlow
from configs import flow_emoji, vae_emoji


def get_config() -> Config:
    config = flow_emoji.get_config()
    model = dataclasses.replace(config.model, image_shape=(8, 8, 4), patch_size=1)
    # The autoencoder's model is given here, so that the config needs no folder to be read.
    autoencoder = vae_emoji.get_config().model
    objective = LatentFlow(autoencoder="runs/vae_emoji", autoencoder_model=autoencoder, latent_scale=1.0)
    return dataclasses.replace(config, model=model, objective=objective)
