"""Rectified flow: the velocity of a straight line from an image to noise is to be found (Liu et al., arXiv:2209.03003)."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.ranges import Count, Positive
from bigmodel_jax.objectives.denoising import Denoising


@dataclasses.dataclass(frozen=True)
class FlowMatching(Denoising):
    """Mean squared error of the predicted velocity, noise - image, at a point of the line drawn for each image.

    Batch: image (B, H, W, C), weights (B,), and what the model reads. sigma in 0 .. 1 is the share of noise: the model sees
    (1 - sigma) image + sigma noise, and sigma * num_steps as its timestep, as Stable Diffusion 3 does (Esser et al.,
    arXiv:2403.03206, sections 2 and 3). The dropout of label or text, which guidance needs, is the model's.
    """

    answer: ClassVar[str] = "velocity"

    num_steps: Count = 1000
    "the timestep of pure noise; a sampler takes at most as many steps"
    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    "how training draws sigma: a normal number through the logistic function (equation 19), or alike everywhere"
    time_mean: float = 0.0  # of the normal number; above 0: more of the noisy end
    time_std: Positive = 1.0
    shift: Positive = (
        1.0  # sigma becomes shift sigma / (1 + (shift - 1) sigma), in training and in sampling (equation 23)
    )
    sampler: Literal["euler", "heun"] = "heun"
    "euler: one evaluation of the model a step, error of order 1; heun: two evaluations, order 2"
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0

    def inputs(self, batch, rng) -> tuple[dict, jax.Array]:
        time_rng, noise_rng, model_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        image = self.moved(batch["image"])
        noise = jax.random.normal(noise_rng, image.shape)
        sigma = draw_sigma(self, time_rng, len(image))
        share = sigma[:, None, None, None]
        noisy = {"image": (1 - share) * image + share * noise, "timestep": sigma * self.num_steps}
        return batch | noisy | {"velocity": noise - image}, model_rng


def draw_sigma(cfg: FlowMatching, rng: jax.Array, num: int) -> jax.Array:
    """(num,) float32 in 0 .. 1, as training draws them."""
    if cfg.time_sampling == "uniform":
        return shifted(jax.random.uniform(rng, (num,)), cfg.shift)
    return shifted(jax.nn.sigmoid(cfg.time_mean + cfg.time_std * jax.random.normal(rng, (num,))), cfg.shift)


def shifted(sigma, shift: float):
    """Larger pictures need more noise to be as hidden: sigma moved towards 1 by a shift above 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sigmas(cfg: FlowMatching, steps: int) -> np.ndarray:
    """(steps + 1,) float32 from 1, noise, down to 0, the image: equal steps, then shifted."""
    return shifted(np.linspace(1.0, 0.0, steps + 1), cfg.shift).astype(np.float32)


def euler(velocity, cfg: FlowMatching, steps: int, noise: jax.Array) -> jax.Array:
    """The image at the end of the flow from `noise` (B, H, W, C); velocity(x, timestep) -> (B, H, W, C)."""

    def step(x, at):
        here, there = at
        return x + (there - here) * velocity(x, here * cfg.num_steps), None

    at = jnp.asarray(sigmas(cfg, steps))
    return jax.lax.scan(step, noise, (at[:-1], at[1:]))[0]


def heun(velocity, cfg: FlowMatching, steps: int, noise: jax.Array) -> jax.Array:
    """As `euler`, with the mean of the velocities at both ends of a step (Karras et al., arXiv:2206.00364, algorithm 1)."""

    def step(x, at):
        here, there = at
        first = velocity(x, here * cfg.num_steps)
        second = velocity(x + (there - here) * first, there * cfg.num_steps)
        return x + (there - here) * (first + second) / 2, None

    at = jnp.asarray(sigmas(cfg, steps))
    return jax.lax.scan(step, noise, (at[:-1], at[1:]))[0]
