"""What objectives of denoising share: an image with noise goes into the model, and an array of its shape is the answer."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import ModelConfig
from bigmodel_jax.objectives.base import Loss, Objective, held_out_loss


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """Mean squared error of what the model predicts, at a time drawn for each image.

    A subclass has the fields num_steps (the largest timestep, and the most steps of a sampler), offset and scale, and an
    `inputs` that puts the noisy image, the timestep and the array `answer` into the batch. Of what the model gives, (B, H,
    W, C or more), the first C channels count. Evaluation draws the same times and noise for every batch, and also gives the
    loss of the model that is told nothing: the batch's "hidden" (B,) bool says for which rows it shall ignore label or text.
    """

    reads = ("image", "weights")
    makes = ("timestep",)
    endings = ("images",)
    metrics = (
        held_out_loss("squared error", headline=True),
        Metric("unconditional_loss", "Held-out loss, told nothing", "less", "{:.3f}", "label or text hidden"),
    )
    answer: ClassVar[str] = "noise"
    "the array of `inputs` that the model is to predict"
    sampler: ClassVar[str] = "ddim"
    "the row of SAMPLERS in inference/sample_images.py that turns its predictions into images"

    def validate(self, config: Any) -> None:
        if getattr(config.data, "normalise", "none") != "none":
            raise ValueError(
                f"data.normalise = {config.data.normalise!r}: {type(self).__name__} moves images itself (objective.offset, "
                "objective.scale) and generates images of 0 .. 1; allowed: 'none'"
            )

    def moved(self, image: jax.Array) -> jax.Array:
        """Images of 0 .. 1 as the model sees them, float32."""
        return (image.astype(jnp.float32) - self.offset) * self.scale

    def picture_shape(self, model: ModelConfig) -> tuple[int, ...]:
        """(H, W, C) of the images that `pictures` gives."""
        return tuple(getattr(model, "image_shape", ()))

    def pictures(self, params: Tree, x: jax.Array) -> jax.Array:
        """Images of 0 .. 1, (B, H, W, C), of what a sampler ends with; params: those of the model and the objective."""
        return jnp.clip(x / self.scale + self.offset, 0.0, 1.0)

    def score(self, out, batch, *, params, train) -> Loss:
        mean = metrics.weighted(squared_error(out.value, batch[self.answer]), batch["weights"])
        return Loss(mean, {"loss": mean}, out.updates)

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        batch, model_rng = self.inputs(batch, rng)
        call = functools.partial(model.apply, params, rng=model_rng if train else None, train=train)
        loss = self.score(call(batch), batch, params=params, train=train)
        if not train:
            told_nothing = call(batch | {"hidden": jnp.ones(len(batch["image"]), bool)})
            loss.metrics["unconditional_loss"] = self.score(told_nothing, batch, params=params, train=train).mean
        return loss


def squared_error(predicted: jax.Array, answer: jax.Array) -> jax.Array:
    """(B,): mean over the image; of what is predicted, the first channels count."""
    predicted = predicted[..., : answer.shape[-1]].astype(jnp.float32)
    return jnp.mean(jnp.square(predicted - answer), axis=(1, 2, 3))
