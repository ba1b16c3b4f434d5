"""The picture at the end of an autoencoder's run: held-out images above reconstructions."""

from pathlib import Path

import jax
import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, processes, sharding
from bigmodel_jax.core.precision import cast
from bigmodel_jax.report.pair_grid import write_pairs
from bigmodel_jax.training.saved import batch_to_show


class Reconstructions:
    """One picture of `objective.pictures` rows spread over the validation split."""

    def check(self, config: Config) -> None:
        pass  # whatever an autoencoder reads has pictures

    def make(self, config: Config, weights: params.Tree, path: Path) -> str:
        if config.objective.pictures:
            images, made = reconstructed(config, weights)
            if processes.first():
                write_pairs(path.with_suffix(".png"), images, made, ("image", "reconstruction"))
        return ""


def reconstructed(config: Config, weights: params.Tree) -> tuple[np.ndarray, np.ndarray]:
    """(images, reconstructions) (N, H, W, C) float32 in 0 .. 1, from latents without noise."""
    model, objective, batch = config.make_model(), config.objective, batch_to_show(config)

    def reconstruct(weights, batch):
        batch, _ = objective.inputs(batch, None)
        out = model.apply(cast(weights, config.precision.compute), batch, rng=None, train=False)
        # Both go through `shown`, so that both are clipped to 0 .. 1.
        return objective.shown(batch["image"]), objective.shown(out.value.image)

    return sharding.to_host(jax.jit(reconstruct)(weights, batch))
