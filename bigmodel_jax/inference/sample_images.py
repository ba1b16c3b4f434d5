"""Samples images from noise with classifier-free guidance (Ho & Salimans, arXiv:2207.12598)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.config import ImageSampleConfig
from bigmodel_jax.models import Model
from bigmodel_jax.objectives import Diffusion
from bigmodel_jax.objectives.denoising import Denoising
from bigmodel_jax.objectives.diffusion import kept
from bigmodel_jax.objectives.flow_matching import euler, heun


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
    run = _compiled(model.apply, objective, cfg.steps)
    return np.asarray(run(params, conditions, noise, np.float32(cfg.guidance)))


@functools.lru_cache(maxsize=8)
def _compiled(apply, objective: Denoising, steps: int):
    return jax.jit(functools.partial(_sample, apply, objective, steps))


def schedule(objective: Diffusion, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(timestep, signal variance there, signal variance after the step), each (steps,), noisiest
    first.

    The first step starts at the last trained timestep ("trailing", arXiv:2305.08891, table 2).
    """
    # Equal gaps, downwards from the last trained timestep.
    timesteps = np.round(np.arange(objective.num_steps, 0, -objective.num_steps / steps)[:steps]).astype(np.int32) - 1
    left = kept(objective)[timesteps]
    return timesteps, left.astype(np.float32), np.append(left[1:], 1.0).astype(np.float32)


def ddim(noise_in, objective: Diffusion, steps: int, x: jax.Array) -> jax.Array:
    """DDIM with eta = 0 (Song et al., arXiv:2010.02502); noise_in(x, timestep) predicts the noise
    in x."""

    def step(x, at):
        timestep, left, left_after = at
        predicted = noise_in(x, timestep)
        # Equation 12 with sigma = 0. The clean image is clipped to the range of pictures.
        clean = jnp.clip((x - jnp.sqrt(1 - left) * predicted) / jnp.sqrt(left), -1.0, 1.0)
        return jnp.sqrt(left_after) * clean + jnp.sqrt(1 - left_after) * predicted, None

    return jax.lax.scan(step, x, jax.tree.map(jnp.asarray, schedule(objective, steps)))[0]


# {name in an objective's `sampler`: (prediction(x, timestep), objective, steps, noise) -> image
# without noise}
SAMPLERS: dict[str, Callable[..., jax.Array]] = {"ddim": ddim, "euler": euler, "heun": heun}


def _sample(apply, objective, steps, params, conditions, noise, guidance):
    def predict(x, timestep):
        return guided(apply, params, conditions, x, timestep, guidance)

    x = SAMPLERS[objective.sampler](predict, objective, steps, jnp.asarray(noise, jnp.float32))
    return objective.pictures(params, x)


def guided(apply, params, conditions: dict, x: jax.Array, timestep: jax.Array, guidance: Any) -> jax.Array:
    """The guided prediction for x (B, H, W, C): unconditional + guidance * (conditional -
    unconditional)."""
    rows, channels = len(x), x.shape[-1]
    # One batch computes both predictions: rows with the condition, then rows without it.
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), conditions | {"image": x})
    batch = twice | {"timestep": jnp.full(2 * rows, timestep), "hidden": jnp.arange(2 * rows) >= rows}
    out = apply(params, batch, train=False).value[..., :channels].astype(jnp.float32)
    return out[rows:] + guidance * (out[:rows] - out[rows:])
