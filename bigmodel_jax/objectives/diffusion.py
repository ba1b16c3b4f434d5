"""Denoising diffusion: the model predicts the noise in an image (Ho et al., arXiv:2006.11239)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.ranges import Count, Positive, ProperShare
from bigmodel_jax.objectives.denoising import Denoising


@dataclasses.dataclass(frozen=True)
class Diffusion(Denoising):
    """Mean squared error of the predicted noise, at a timestep drawn for each image.

    Batch: image (B, H, W, C), weights (B,), and the model's inputs. The first C channels of the
    model's output (B, H, W, C or more) are the noise. Further channels, a learned variance, are not
    trained.
    """

    num_steps: Count = 1000  # timesteps of the noise schedule
    beta_start: ProperShare = 1e-4  # variance that the first step adds; linear up to beta_end at the last
    beta_end: ProperShare = 0.02  # variance that the last step adds
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0  # see offset

    def inputs(self, batch, rng) -> tuple[dict, jax.Array]:
        # Without a key, as in evaluation, every batch gets the same times and noise.
        time_rng, noise_rng, model_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        image = self.moved(batch["image"])
        timestep = jax.random.randint(time_rng, (len(image),), 0, self.num_steps)
        noise = jax.random.normal(noise_rng, image.shape)
        noisy = {"image": add_noise(self, image, noise, timestep), "timestep": timestep, "noise": noise}
        return batch | noisy, model_rng


def kept(cfg: Diffusion) -> np.ndarray:
    """(num_steps,) float64: the share of the image's variance that is left after each step."""
    # This is the paper's alpha-bar. It is computed in float64, because it is a product of 1,000
    # factors close to 1.
    return np.cumprod(1.0 - np.linspace(cfg.beta_start, cfg.beta_end, cfg.num_steps, dtype=np.float64))


def add_noise(cfg: Diffusion, image: jax.Array, noise: jax.Array, timestep: jax.Array) -> jax.Array:
    """The image after `timestep` (B,) noising steps, in one formula: equation 4."""
    left = kept(cfg)
    signal, added = (jnp.asarray(np.sqrt(x), jnp.float32)[timestep][:, None, None, None] for x in (left, 1.0 - left))
    return signal * image + added * noise
