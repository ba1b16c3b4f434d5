"""Reconstruction of an image from codes (FSQ, Mentzer et al., arXiv:2309.15505)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import Mean, Metric, weighted
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.reconstruction import PSNR, Reconstruction


@dataclasses.dataclass(frozen=True)
class DiscreteAutoencoding(Reconstruction):
    """The error of the reconstruction.

    The model's value is `Coded` of models/discrete_autoencoder.py. Another model raises ValueError.
    """

    metrics = (
        held_out_loss("error per value"),
        PSNR,
        Metric("code_perplexity", "Perplexity of the codes", "more", "{:.0f}", "codes, if all were used alike"),
        Metric("codes_used", "Codes in use", "more", "{:.1%}", "of all codes"),
    )

    def checked(self, value: Any) -> Any:
        if not hasattr(value, "ids"):
            raise ValueError(
                "objective: DiscreteAutoencoding needs a model that gives codes; models that give them: discrete_autoencoder"
            )
        return value

    def score(self, out, batch, *, params, train) -> Loss:
        value, weights = self.checked(out.value), batch["weights"].astype(jnp.float32)
        mean = weighted(self.errors(value.image, batch["image"]), weights)
        found = {"loss": mean}
        if not train:
            found["psnr"] = weighted(self.psnr(value.image, batch["image"]), weights)
            found["uses"] = Mean(uses(value.ids, weights, value.num_codes), jnp.zeros(()))
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
