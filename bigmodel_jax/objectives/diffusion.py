"""Denoising: the noise that was added to an image is to be found (Ho et al., arXiv:2006.11239)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import Count, Positive, ProperShare
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss


@dataclasses.dataclass(frozen=True)
class Diffusion(Objective):
    """Mean squared error of the predicted noise, at a timestep drawn for each image.

    Batch: image (B, H, W, C), weights (B,), and what the model reads. Of what the model gives, (B, H, W, C or more), the
    first C channels are the noise; a learned variance behind them is not trained here. Evaluation draws the same timesteps
    and noise for every batch, and also gives the loss of the model that is told nothing: the batch's "hidden" (B,) bool
    says for which rows it shall ignore label or text.
    """

    reads = ("image", "weights")
    makes = ("timestep",)
    endings = ("images",)
    metrics = (
        held_out_loss("squared error", headline=True),
        Metric("unconditional_loss", "Held-out loss, told nothing", "less", "{:.3f}", "label or text hidden"),
    )

    num_steps: Count = 1000
    beta_start: ProperShare = 1e-4  # variance that the first step adds, and the last; linear between
    beta_end: ProperShare = 0.02
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0

    def validate(self, config: Any) -> None:
        if getattr(config.data, "normalise", "none") != "none":
            raise ValueError(
                f"data.normalise = {config.data.normalise!r}: Diffusion moves images itself (objective.offset, "
                "objective.scale) and generates images of 0 .. 1; allowed: 'none'"
            )

    def inputs(self, batch, rng) -> tuple[dict, jax.Array]:
        time_rng, noise_rng, model_rng = jax.random.split(jax.random.key(0) if rng is None else rng, 3)
        image = (batch["image"].astype(jnp.float32) - self.offset) * self.scale
        timestep = jax.random.randint(time_rng, (len(image),), 0, self.num_steps)
        noise = jax.random.normal(noise_rng, image.shape)
        noisy = {"image": add_noise(self, image, noise, timestep), "timestep": timestep, "noise": noise}
        return batch | noisy, model_rng

    def score(self, out, batch, *, params, train) -> Loss:
        mean = metrics.weighted(squared_error(out.value, batch["noise"]), batch["weights"])
        return Loss(mean, {"loss": mean}, out.updates)

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        batch, model_rng = self.inputs(batch, rng)
        call = functools.partial(model.apply, params, rng=model_rng if train else None, train=train)
        loss = self.score(call(batch), batch, params=params, train=train)
        if not train:
            told_nothing = call(batch | {"hidden": jnp.ones(len(batch["image"]), bool)})
            loss.metrics["unconditional_loss"] = self.score(told_nothing, batch, params=params, train=train).mean
        return loss


def squared_error(predicted: jax.Array, noise: jax.Array) -> jax.Array:
    """(B,): mean over the image; of what is predicted, the first channels count."""
    predicted = predicted[..., : noise.shape[-1]].astype(jnp.float32)
    return jnp.mean(jnp.square(predicted - noise), axis=(1, 2, 3))


def kept(cfg: Diffusion) -> np.ndarray:
    """(num_steps,) float64: how much of the image's variance is left after each step."""
    return np.cumprod(1.0 - np.linspace(cfg.beta_start, cfg.beta_end, cfg.num_steps, dtype=np.float64))


def add_noise(cfg: Diffusion, image: jax.Array, noise: jax.Array, timestep: jax.Array) -> jax.Array:
    """What `timestep` (B,) steps make of the image, in one: equation 4."""
    left = kept(cfg)
    signal, added = (jnp.asarray(np.sqrt(x), jnp.float32)[timestep][:, None, None, None] for x in (left, 1.0 - left))
    return signal * image + added * noise
