"""`Reconstruction`, the base class of autoencoders' objectives: the error of a reconstruction."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.ranges import CountOrZero, Positive
from bigmodel_jax.objectives.of_pictures import OfPictures

PSNR = Metric("psnr", "Peak signal-to-noise ratio", "more", "{:.1f}", "dB", headline=True)


@dataclasses.dataclass(frozen=True)
class Reconstruction(OfPictures):
    """Base class of objectives of a model whose value has the reconstruction as `image`.

    Batch: image (B, H, W, C) in 0 .. 1, weights (B,).
    """

    reads = ("image", "weights")
    row_metrics = (Metric("psnr", "Peak signal-to-noise ratio", "more", "{:.1f}", "dB"),)
    endings = ("reconstructions",)

    error: Literal["l1", "l2"] = "l1"
    "l1: absolute error, as latent diffusion's autoencoders are trained with; l2: squared error"
    offset: float = 0.5  # the model sees (image - offset) * scale: -1 .. 1 for images of 0 .. 1
    scale: Positive = 2.0
    pictures: CountOrZero = 8
    "held-out images that the run's page shows beside their reconstructions; 0: none"

    def checked(self, value: Any) -> Any:
        """The model's value. Raises a one-line ValueError for a model that makes no
        reconstruction."""
        return value

    def inputs(self, batch, rng):
        return batch | {"image": self.moved(batch["image"])}, rng

    def errors(self, reconstructed: jax.Array, image: jax.Array) -> jax.Array:
        """(B,): the mean error of an image's values, as the model sees them."""
        difference = reconstructed.astype(jnp.float32) - image
        error = jnp.abs(difference) if self.error == "l1" else jnp.square(difference)
        return jnp.mean(error, axis=(1, 2, 3))

    def psnr(self, reconstructed: jax.Array, image: jax.Array) -> jax.Array:
        """(B,) dB between two images, after both are mapped to 0 .. 1 and clipped."""
        squares = jnp.square(self.shown(reconstructed) - self.shown(image))
        # The peak is 1. The floor gives equal images 100 dB in place of infinity.
        return -10 * jnp.log10(jnp.maximum(jnp.mean(squares, axis=(1, 2, 3)), 1e-10))

    def of_rows(self, out, batch):
        weights = batch["weights"].astype(jnp.float32)
        return {"psnr": (self.psnr(self.checked(out.value).image, batch["image"]), weights)}
