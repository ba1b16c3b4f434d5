"""Rectified flow: the model predicts the velocity from an image to noise (Liu et al.,
arXiv:2209.03003).
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import numpy as np

from bigmodel_jax.core.ranges import Count, Positive
from bigmodel_jax.objectives.denoising import Denoising


@dataclasses.dataclass(frozen=True)
class FlowMatching(Denoising):
    """Mean squared error of the predicted velocity, noise - image, at a random point of the line.

    Batch: image (B, H, W, C), weights (B,), and the model's inputs. sigma in 0 .. 1 is the share of
    noise. The model gets the image (1 - sigma) image + sigma noise and the timestep sigma *
    num_steps, as in Stable Diffusion 3 (Esser et al., arXiv:2403.03206, sections 2 and 3). Guidance
    needs a model that drops labels or texts at random in training. This objective does not drop
    them.
    """

    answer: ClassVar[str] = "velocity"

    num_steps: Count = 1000
    "the timestep of pure noise, and the most steps of a sampler"
    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    """distribution of sigma in training: logistic function of a normal number (equation 19), or
    uniform"""
    time_mean: float = 0.0  # mean of that normal number; values above 0 favour noisier steps
    time_std: Positive = 1.0  # standard deviation of the normal number
    shift: Positive = 1.0  # sigma becomes shift sigma / (1 + (shift - 1) sigma) everywhere (equation 23)
    sampler: Literal["euler", "heun"] = "heun"
    "euler: one model call per step, first order; heun: two calls, second order"
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0  # see offset

    def inputs(self, batch, rng) -> tuple[dict, jax.Array]:
        # Without a key, as in evaluation, every batch gets the same times and noise.
        time_rng, noise_rng, model_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        image = self.moved(batch["image"])
        noise = jax.random.normal(noise_rng, image.shape)
        sigma = draw_sigma(self, time_rng, len(image))
        share = sigma[:, None, None, None]
        noisy = {"image": (1 - share) * image + share * noise, "timestep": sigma * self.num_steps}
        return batch | noisy | {"velocity": noise - image}, model_rng


def draw_sigma(cfg: FlowMatching, rng: jax.Array, num: int) -> jax.Array:
    """(num,) float32 values of sigma in 0 .. 1, drawn as in training."""
    if cfg.time_sampling == "uniform":
        return shifted(jax.random.uniform(rng, (num,)), cfg.shift)
    return shifted(jax.nn.sigmoid(cfg.time_mean + cfg.time_std * jax.random.normal(rng, (num,))), cfg.shift)


def shifted(sigma, shift: float):
    """Moves sigma towards 1 for a shift above 1, because larger pictures need more noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmas(cfg: FlowMatching, steps: int) -> np.ndarray:
    """(steps + 1,) float32 values from 1 (noise) to 0 (image): equal steps, then shifted."""
    return shifted(np.linspace(1.0, 0.0, steps + 1), cfg.shift).astype(np.float32)


def spans(cfg: FlowMatching, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(sigma before, sigma after) each step, (steps,) each."""
    at = sigmas(cfg, steps)
    return at[:-1], at[1:]


def euler(velocity, cfg: FlowMatching, x: jax.Array, at: tuple) -> jax.Array:
    """One step of Euler's method along the flow: x (B, H, W, C) at the second sigma of `at`.

    `velocity` is a function (x, timestep) -> (B, H, W, C).
    """
    here, there = at
    return x + (there - here) * velocity(x, here * cfg.num_steps)


def heun(velocity, cfg: FlowMatching, x: jax.Array, at: tuple) -> jax.Array:
    """As `euler`, with the mean of the velocities at both ends of the step.

    Source: Karras et al., arXiv:2206.00364, algorithm 1.
    """
    here, there = at
    first = velocity(x, here * cfg.num_steps)
    second = velocity(x + (there - here) * first, there * cfg.num_steps)
    return x + (there - here) * (first + second) / 2
