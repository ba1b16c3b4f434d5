"""Samples images from noise with classifier-free guidance (Ho & Salimans, arXiv:2207.12598)."""

import functools
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import ImageSampleConfig
from bigmodel_jax.models import Model
from bigmodel_jax.objectives import Diffusion
from bigmodel_jax.objectives.denoising import Denoising
from bigmodel_jax.objectives.diffusion import kept
from bigmodel_jax.objectives.flow_matching import euler, heun, spans


def sample_images(
    model: Model,
    params: Any,
    objective: Denoising,
    conditions: dict[str, np.ndarray],
    noise: np.ndarray,
    cfg: ImageSampleConfig,
) -> np.ndarray:
    """Images (B, H, W, C) float32 in [0, 1].

    noise: of that shape. conditions: labels or texts, with B rows each. The samplers add no noise,
    so the same noise gives the same images.
    """
    parts = sampling(model, params, objective, conditions, noise, cfg)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


def sampling(
    model: Model, params: Any, objective: Denoising, conditions: dict, noise: np.ndarray, cfg: ImageSampleConfig
) -> Generator[None, None, np.ndarray]:
    """`sample_images` in parts: yields after each step of the sampler, and returns the images."""
    step, pictures = _compiled(model.apply, objective)
    x, conditions = jnp.asarray(noise, jnp.float32), jax.tree.map(jnp.asarray, conditions)
    for at in zip(*SAMPLERS[objective.sampler].points(objective, cfg.steps), strict=True):
        # Waiting for the device makes a part last as long as its step.
        x = jax.block_until_ready(step(params, conditions, x, at, np.float32(cfg.guidance)))
        yield
    return np.asarray(pictures(params, x))


@functools.lru_cache(maxsize=8)
def _compiled(apply, objective: Denoising) -> tuple[Callable, Callable]:
    """One program serves every number of steps."""

    def step(params, conditions, x, at, guidance):
        def predict(x, timestep):
            return guided(apply, params, conditions, x, timestep, guidance)

        return SAMPLERS[objective.sampler].step(predict, objective, x, at)

    return jax.jit(step), jax.jit(objective.pictures)


def schedule(objective: Diffusion, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(timestep, signal variance there, signal variance after the step), each (steps,), noisiest
    first.

    The first step starts at the last trained timestep ("trailing", arXiv:2305.08891, table 2).
    """
    # Equal gaps, downwards from the last trained timestep.
    timesteps = np.round(np.arange(objective.num_steps, 0, -objective.num_steps / steps)[:steps]).astype(np.int32) - 1
    left = kept(objective)[timesteps]
    return timesteps, left.astype(np.float32), np.append(left[1:], 1.0).astype(np.float32)


def ddim(noise_in, objective: Diffusion, x: jax.Array, at: tuple) -> jax.Array:
    """One step of DDIM with eta = 0 (Song et al., arXiv:2010.02502); at: a row of `schedule`.

    noise_in(x, timestep) predicts the noise in x.
    """
    timestep, left, left_after = at
    predicted = noise_in(x, timestep)
    # Equation 12 with sigma = 0; the clean image is clipped to the range of pictures.
    clean = jnp.clip((x - jnp.sqrt(1 - left) * predicted) / jnp.sqrt(left), -1.0, 1.0)
    return jnp.sqrt(left_after) * clean + jnp.sqrt(1 - left_after) * predicted


class Sampler(NamedTuple):
    """A way from noise to an image.

    points: (objective, steps) -> arrays with a row per step, noisiest first. step: (prediction(x,
    timestep), objective, x, the rows of one step) -> x after the step.
    """

    points: Callable[..., tuple[np.ndarray, ...]]
    step: Callable[..., jax.Array]


# The keys are the values of an objective's `sampler`.
SAMPLERS = {"ddim": Sampler(schedule, ddim), "euler": Sampler(spans, euler), "heun": Sampler(spans, heun)}


def guided(apply, params, conditions: dict, x: jax.Array, timestep: jax.Array, guidance: Any) -> jax.Array:
    """The guided prediction for x (B, H, W, C): unconditional + guidance * (conditional -
    unconditional)."""
    rows, channels = len(x), x.shape[-1]
    # One batch computes both predictions: rows with the condition, then rows without it.
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), conditions | {"image": x})
    batch = twice | {"timestep": jnp.full(2 * rows, timestep), "hidden": jnp.arange(2 * rows) >= rows}
    out = apply(params, batch, train=False).value[..., :channels].astype(jnp.float32)
    return out[rows:] + guidance * (out[:rows] - out[rows:])
