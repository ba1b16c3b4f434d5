"""Reconstruction of an image from its latent (Kingma & Welling, arXiv:1312.6114; Rombach et al.,
arXiv:2112.10752).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import Mean, Metric, weighted
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.reconstruction import PSNR, Reconstruction


@dataclasses.dataclass(frozen=True)
class Autoencoding(Reconstruction):
    """The error of the reconstruction plus `kl_weight` times the latent's divergence from a
    standard normal distribution.

    Both terms are sums over an image, divided by its number of values. The model's value has image,
    mean and log_variance, as models/autoencoder.py gives them. Another model raises ValueError.
    """

    metrics = (
        held_out_loss("error and divergence per value"),
        PSNR,
        Metric("divergence", "Divergence from a standard normal", "less", "{:.1f}", "nats per image"),
        Metric("latent_mean", "Mean of the latent's values", "", "{:.3f}"),
        Metric("latent_std", "Standard deviation of the latent's values", "", "{:.3f}", beside="latent_mean"),
    )

    kl_weight: NonNegative = 1e-6
    "0: no divergence in the loss"

    def checked(self, value: Any) -> Any:
        if not hasattr(value, "log_variance"):
            raise ValueError(
                "objective: Autoencoding needs a model that gives a latent's mean and log variance; models that give "
                "them: autoencoder"
            )
        return value

    def score(self, out, batch, *, params, train) -> Loss:
        value, weights = self.checked(out.value), batch["weights"].astype(jnp.float32)
        divergence = divergence_of(value.mean, value.log_variance)
        error = self.errors(value.image, batch["image"])
        # The divergence is a sum over the latent, and the error is a mean over the image. Dividing
        # the divergence by the image's size puts both on one scale.
        mean = weighted(error + self.kl_weight * divergence / batch["image"][0].size, weights)
        found = {"loss": mean, "divergence": weighted(divergence, weights)}
        if not train:
            latent = value.mean.astype(jnp.float32)
            found["psnr"] = weighted(self.psnr(value.image, batch["image"]), weights)
            found["latent_mean"] = weighted(jnp.mean(latent, axis=(1, 2, 3)), weights)
            # A latent is drawn, so its expected square is mean^2 + variance.
            squares = jnp.square(latent) + jnp.exp(value.log_variance.astype(jnp.float32))
            found["latent_square"] = weighted(jnp.mean(squares, axis=(1, 2, 3)), weights)
        return Loss(mean, found, out.updates)

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        found = super().summarize(metrics)
        square = found.pop("latent_square")
        return found | {"latent_std": max(square - found["latent_mean"] ** 2, 0.0) ** 0.5}


def divergence_of(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """(B,) nats: KL(N(mean, variance) || N(0, 1)), summed over the latent (arXiv:1312.6114,
    appendix B).
    """
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))
