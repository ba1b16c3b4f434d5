"""Denoising: the noise that was added to an image is to be found (Ho et al., arXiv:2006.11239)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.ranges import Count, Positive, ProperShare
from bigmodel_jax.objectives.denoising import Denoising


@dataclasses.dataclass(frozen=True)
class Diffusion(Denoising):
    """Mean squared error of the predicted noise, at a timestep drawn for each image.

    Batch: image (B, H, W, C), weights (B,), and what the model reads. Of what the model gives, (B, H, W, C or more), the
    first C channels are the noise; a learned variance behind them is not trained here.
    """

    num_steps: Count = 1000
    beta_start: ProperShare = 1e-4  # variance that the first step adds, and the last; linear between
    beta_end: ProperShare = 0.02
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0

    def inputs(self, batch, rng) -> tuple[dict, jax.Array]:
        time_rng, noise_rng, model_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        image = self.moved(batch["image"])
        timestep = jax.random.randint(time_rng, (len(image),), 0, self.num_steps)
        noise = jax.random.normal(noise_rng, image.shape)
        noisy = {"image": add_noise(self, image, noise, timestep), "timestep": timestep, "noise": noise}
        return batch | noisy, model_rng


def kept(cfg: Diffusion) -> np.ndarray:
    """(num_steps,) float64: how much of the image's variance is left after each step."""
    return np.cumprod(1.0 - np.linspace(cfg.beta_start, cfg.beta_end, cfg.num_steps, dtype=np.float64))


def add_noise(cfg: Diffusion, image: jax.Array, noise: jax.Array, timestep: jax.Array) -> jax.Array:
    """What `timestep` (B,) steps make of the image, in one: equation 4."""
    left = kept(cfg)
    signal, added = (jnp.asarray(np.sqrt(x), jnp.float32)[timestep][:, None, None, None] for x in (left, 1.0 - left))
    return signal * image + added * noise
