"""`OfPictures`, the base class of objectives whose model sees images in its own value range."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class OfPictures(Objective):
    """The model sees (image - offset) * scale, for images of 0 .. 1.

    A subclass has the fields offset and scale. Data that normalises images is refused, because
    `shown` could not make pictures of them.
    """

    def validate(self, config: Any) -> None:
        if getattr(config.data, "normalise", "none") != "none":
            raise ValueError(
                f"data.normalise = {config.data.normalise!r}: {type(self).__name__} shifts and scales images itself "
                "(objective.offset, objective.scale) and gives images of 0 .. 1; allowed: 'none'"
            )

    def moved(self, image: jax.Array) -> jax.Array:
        """Maps images of 0 .. 1 to the model's value range, float32."""
        return (image.astype(jnp.float32) - self.offset) * self.scale

    def shown(self, x: jax.Array) -> jax.Array:
        """Maps the model's values back to images of 0 .. 1, float32."""
        return jnp.clip(x.astype(jnp.float32) / self.scale + self.offset, 0.0, 1.0)
