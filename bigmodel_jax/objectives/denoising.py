"""`Denoising`, the base class of objectives whose model gets a noisy image."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import metrics
from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.core.params import Tree
from bigmodel_jax.models.base import ModelConfig
from bigmodel_jax.objectives.base import Loss, held_out_loss
from bigmodel_jax.objectives.of_pictures import OfPictures


@dataclasses.dataclass(frozen=True)
class Denoising(OfPictures):
    """Mean squared error of the prediction, at a time drawn at random for each image.

    A subclass has the field num_steps (the largest timestep, and the most steps of a sampler). Its
    `inputs` puts the noisy image, the timestep and the array `answer` into the batch. The model's
    output (B, H, W, C or more) is compared in its first C channels.

    Evaluation draws the same times and noise for every batch. It also reports the unconditional
    loss, for which "hidden" (B,) bool in the batch tells the model to ignore label or text.
    """

    reads = ("image", "weights")
    makes = ("timestep",)
    endings = ("images",)
    metrics = (
        held_out_loss("squared error", headline=True),
        Metric("unconditional_loss", "Held-out loss, told nothing", "less", "{:.3f}", "label or text hidden"),
    )
    answer: ClassVar[str] = "noise"
    "the array of `inputs` that the model learns to predict"
    sampler: ClassVar[str] = "ddim"
    "the sampler, a name in SAMPLERS of inference/sample_images.py"

    def picture_shape(self, model: ModelConfig) -> tuple[int, ...]:
        """(H, W, C) of the images that `pictures` gives."""
        return tuple(getattr(model, "image_shape", ()))

    def pictures(self, params: Tree, x: jax.Array) -> jax.Array:
        """Images (B, H, W, C) of 0 .. 1 from a sampler's result `x`.

        `params` has the parameters of the model and of the objective.
        """
        return self.shown(x)

    def score(self, out, batch, *, params, train) -> Loss:
        mean = metrics.weighted(squared_error(out.value, batch[self.answer]), batch["weights"])
        return Loss(mean, {"loss": mean}, out.updates)

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        # Both calls below get the same times and noise, so the two losses differ by the condition
        # alone.
        batch, model_rng = self.inputs(batch, rng)
        call = functools.partial(model.apply, params, rng=model_rng if train else None, train=train)
        loss = self.score(call(batch), batch, params=params, train=train)
        if not train:
            told_nothing = call(batch | {"hidden": jnp.ones(len(batch["image"]), bool)})
            loss.metrics["unconditional_loss"] = self.score(told_nothing, batch, params=params, train=train).mean
        return loss


def squared_error(predicted: jax.Array, answer: jax.Array) -> jax.Array:
    """(B,): mean squared error over each image. Extra channels of the prediction are ignored."""
    predicted = predicted[..., : answer.shape[-1]].astype(jnp.float32)
    return jnp.mean(jnp.square(predicted - answer), axis=(1, 2, 3))
