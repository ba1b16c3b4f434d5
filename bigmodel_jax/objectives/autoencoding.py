"""Reconstruction of an image from its latent (Kingma & Welling, arXiv:1312.6114; Rombach et al.,
arXiv:2112.10752).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import Mean, Metric, weighted
from bigmodel_jax.core.ranges import CountOrZero, NonNegative, Positive
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.of_pictures import OfPictures


@dataclasses.dataclass(frozen=True)
class Autoencoding(OfPictures):
    """The error of the reconstruction plus `kl_weight` times the latent's divergence from a
    standard normal distribution.

    Batch: image (B, H, W, C) in 0 .. 1, weights (B,). Both terms are sums over an image, divided by
    its number of values. The model's value has image, mean and log_variance, as
    models/autoencoder.py gives them. ValueError for another model.
    """

    reads = ("image", "weights")
    metrics = (
        held_out_loss("error and divergence per value"),
        Metric("psnr", "Peak signal-to-noise ratio", "more", "{:.1f}", "dB", headline=True),
        Metric("divergence", "Divergence from a standard normal", "less", "{:.1f}", "nats per image"),
        Metric("latent_mean", "Mean of the latent's values", "", "{:.3f}"),
        Metric("latent_std", "Standard deviation of the latent's values", "", "{:.3f}", beside="latent_mean"),
    )
    row_metrics = (Metric("psnr", "Peak signal-to-noise ratio", "more", "{:.1f}", "dB"),)
    endings = ("reconstructions",)

    error: Literal["l1", "l2"] = "l1"
    "l1: absolute error, as latent diffusion's autoencoders are trained with; l2: squared error"
    kl_weight: NonNegative = 1e-6
    "0: no divergence in the loss"
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0
    pictures: CountOrZero = 8
    "held-out images that the run's page shows beside their reconstructions; 0: none"

    def inputs(self, batch, rng):
        return batch | {"image": self.moved(batch["image"])}, rng

    def score(self, out, batch, *, params, train) -> Loss:
        value, weights = checked(out.value), batch["weights"].astype(jnp.float32)
        difference = value.image.astype(jnp.float32) - batch["image"]
        error = jnp.abs(difference) if self.error == "l1" else jnp.square(difference)
        divergence = divergence_of(value.mean, value.log_variance)
        values = batch["image"][0].size
        mean = weighted(jnp.mean(error, axis=(1, 2, 3)) + self.kl_weight * divergence / values, weights)
        found = {"loss": mean, "divergence": weighted(divergence, weights)}
        if not train:
            latent = value.mean.astype(jnp.float32)
            found["psnr"] = weighted(self.psnr(value.image, batch["image"]), weights)
            found["latent_mean"] = weighted(jnp.mean(latent, axis=(1, 2, 3)), weights)
            # Latents are drawn: their squares are those of the mean and the variance together.
            squares = jnp.square(latent) + jnp.exp(value.log_variance.astype(jnp.float32))
            found["latent_square"] = weighted(jnp.mean(squares, axis=(1, 2, 3)), weights)
        return Loss(mean, found, out.updates)

    def psnr(self, reconstructed: jax.Array, image: jax.Array) -> jax.Array:
        """(B,) dB between images as the model sees them, once both are cut to 0 .. 1."""
        squares = jnp.square(self.shown(reconstructed) - self.shown(image))
        return -10 * jnp.log10(jnp.maximum(jnp.mean(squares, axis=(1, 2, 3)), 1e-10))

    def of_rows(self, out, batch):
        weights = batch["weights"].astype(jnp.float32)
        return {"psnr": (self.psnr(checked(out.value).image, batch["image"]), weights)}

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        found = super().summarize(metrics)
        square = found.pop("latent_square")
        return found | {"latent_std": max(square - found["latent_mean"] ** 2, 0.0) ** 0.5}


def checked(value: Any) -> Any:
    """The model's value; ValueError where it has no latent."""
    if not hasattr(value, "log_variance"):
        raise ValueError(
            "objective: Autoencoding needs a model that gives a latent's mean and log variance; models that give them: "
            "autoencoder"
        )
    return value


def divergence_of(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """(B,) nats: KL(N(mean, variance) || N(0, 1)), summed over the latent (arXiv:1312.6114,
    appendix B).
    """
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))
