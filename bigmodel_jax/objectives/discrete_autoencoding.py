"""Reconstruction of an image from codes (VQ-VAE, van den Oord et al., arXiv:1711.00937)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import Mean, Metric, weighted
from bigmodel_jax.core.ranges import NonNegative
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.reconstruction import PSNR, Reconstruction


@dataclasses.dataclass(frozen=True)
class DiscreteAutoencoding(Reconstruction):
    """The error of the reconstruction, plus the squared distance between the encoder's vectors and
    their codes (equation 3 of the paper).

    The distance moves codes to their vectors with the weight `codebook_weight`, and vectors to
    their codes with `commitment` times that. The model's value is `Coded` of
    models/discrete_autoencoder.py. Another model raises ValueError.
    """

    metrics = (
        held_out_loss("error and distance per value"),
        PSNR,
        Metric("error", "Error of the reconstruction", "less", "{:.4f}", "per value", beside="loss"),
        Metric("code_perplexity", "Perplexity of the codes", "more", "{:.0f}", "codes, if all were used alike"),
        Metric("codes_used", "Codes in use", "more", "{:.1%}", "of the codebook"),
        Metric("code_distance", "Squared distance of vectors to their codes", "less", "{:.3f}", "per value"),
    )

    codebook_weight: NonNegative = 1.0
    commitment: NonNegative = 0.25
    "the paper found 0.1 to 2 alike"

    def checked(self, value: Any) -> Any:
        if not hasattr(value, "ids"):
            raise ValueError(
                "objective: DiscreteAutoencoding needs a model that gives codes; models that give them: discrete_autoencoder"
            )
        return value

    def score(self, out, batch, *, params, train) -> Loss:
        value, weights = self.checked(out.value), batch["weights"].astype(jnp.float32)
        stop, distances = jax.lax.stop_gradient, []
        # Both distances are the same number. The stopped gradient decides which side moves.
        for one, other in ((stop(value.vectors), value.codes), (value.vectors, stop(value.codes))):
            distances.append(jnp.mean(jnp.square(one - other), axis=(1, 2, 3)))
        distance = self.codebook_weight * (distances[0] + self.commitment * distances[1])
        error = self.errors(value.image, batch["image"])
        mean = weighted(error + distance, weights)
        found = {"loss": mean, "error": weighted(error, weights), "code_distance": weighted(distances[0], weights)}
        if not train:
            found["psnr"] = weighted(self.psnr(value.image, batch["image"]), weights)
            found["uses"] = Mean(uses(value.ids, weights, len(params["codebook"]["table"])), jnp.zeros(()))
        return Loss(mean, found, out.updates)

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        found = super().summarize({name: m for name, m in metrics.items() if name != "uses"})
        counts = jnp.asarray(metrics["uses"].total)
        shares = counts / jnp.maximum(jnp.sum(counts), 1)
        entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
        return found | {"code_perplexity": float(jnp.exp(entropy)), "codes_used": float(jnp.mean(counts > 0))}


def uses(ids: jax.Array, weights: jax.Array, num: int) -> jax.Array:
    """(num,) float32: how often each code occurs in ids (B, h, w), with rows weighted by `weights`
    (B,).
    """
    every = jnp.broadcast_to(weights[:, None, None], ids.shape)
    return jnp.zeros(num, jnp.float32).at[ids.reshape(-1)].add(every.reshape(-1))
