"""`configs/flow_emoji.py` among the latents of `runs/vae_emoji`, which is trained first.

A latent has 8x8 pixels, so that a patch is one of them, and a step costs what it costs among the
pixels with patches of 4x4. `objective.latent_scale` is 1 / latent_std of the autoencoder's run.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.objectives import LatentFlow
from configs import flow_emoji


def get_config() -> Config:
    config = flow_emoji.get_config()
    model = dataclasses.replace(config.model, image_shape=(8, 8, 4), patch_size=1)
    objective = LatentFlow(autoencoder="runs/vae_emoji", latent_scale=1.0)
    return dataclasses.replace(config, model=model, objective=objective)
