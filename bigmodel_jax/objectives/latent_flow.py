"""Rectified flow among the latents of an autoencoder that stays as it is (Esser et al.,
arXiv:2403.03206, section 5).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params as parameters_of
from bigmodel_jax.core.params import Tree
from bigmodel_jax.core.ranges import Positive
from bigmodel_jax.models.base import ModelConfig
from bigmodel_jax.objectives.flow_matching import FlowMatching
from bigmodel_jax.objectives.other_run import model_of

AUTOENCODER = "autoencoder"  # name of the branch with the autoencoder's parameters


@dataclasses.dataclass(frozen=True)
class LatentFlow(FlowMatching):
    """`FlowMatching` of latents: the step encodes each image, and the sampler's result is decoded.

    The autoencoder is a constant of the run. The model sees (latent - latent_offset) *
    latent_scale, whose standard deviation should be about 1: a run of the autoencoder reports
    latent_mean and latent_std, and latent_scale is 1 / latent_std. offset and scale move the image
    before it is encoded, as the autoencoder's run did.
    """

    makes = ("timestep", "image")

    autoencoder: str = ""
    "the folder of a run of an autoencoder, as train.init_from writes it"
    autoencoder_model: ModelConfig | None = None  # the autoencoder's model; None = read from the folder's config.json
    latent_offset: float = 0.0
    latent_scale: Positive = 1.0

    def sources(self) -> dict[str, str]:
        return {AUTOENCODER: self.autoencoder} if self.autoencoder else {}

    def parameters(self, model: ModelConfig) -> Tree:
        found = self.autoencoder_config()
        if tuple(model.image_shape) != found.latent_shape:
            raise ValueError(
                f"model.image_shape = {tuple(model.image_shape)}: the latents of objective.autoencoder = "
                f"{self.autoencoder!r} have the shape {found.latent_shape}"
            )
        constant = parameters_of.map_spec(lambda p: dataclasses.replace(p, kind="constant"), found.make().spec)
        return {AUTOENCODER: constant}

    def autoencoder_config(self) -> ModelConfig:
        """The autoencoder's model config.

        Raises a one-line ValueError if it is unknown or has no latents.
        """
        found = model_of(self.autoencoder, "objective.autoencoder", self.autoencoder_model)
        if not hasattr(found, "latent_shape") or hasattr(found, "num_codes"):
            raise ValueError(
                f"objective.autoencoder = {self.autoencoder!r} is a run of {type(found).__name__}, which has no latents of "
                "numbers; give a run of configs/vae_emoji.py, or of another autoencoder"
            )
        return found

    def validate(self, config: Any) -> None:
        super().validate(config)
        wanted, given = self.autoencoder_config().image_shape, config.data.row().get("image")
        if given is not None and tuple(given.shape) != tuple(wanted):
            raise ValueError(
                f"objective.autoencoder = {self.autoencoder!r} reads images of shape {tuple(wanted)}, and the data's have "
                f"{tuple(given.shape)}"
            )

    def picture_shape(self, model: ModelConfig) -> tuple[int, ...]:
        return tuple(self.autoencoder_config().image_shape)

    def moved(self, image: jax.Array) -> jax.Array:
        """Maps latents, which `loss` has put in place of the image, to the model's range,
        float32.
        """
        return (image.astype(jnp.float32) - self.latent_offset) * self.latent_scale

    def loss(self, model, params, batch, *, rng, train):
        # Evaluation takes the mean of the latents, so that its loss has no noise of the encoder.
        rng, own = (None, None) if rng is None else jax.random.split(rng)
        latent = self.encoded(params[AUTOENCODER], batch["image"], own)
        return super().loss(model, params, batch | {"image": latent}, rng=rng, train=train)

    def encoded(self, constants: Tree, image: jax.Array, rng: jax.Array | None) -> jax.Array:
        """Encodes images of 0 .. 1 to latents (B, h, w, Z) float32: drawn with `rng`, else the
        mean.
        """
        # The autoencoder stays as it is, so no backward pass goes through it.
        constants = jax.lax.stop_gradient(constants)
        dtype = jax.tree.leaves(constants)[0].dtype
        image = super().moved(image).astype(dtype)
        mean, log_variance = (x.astype(jnp.float32) for x in self.autoencoder_config().encode(constants, image))
        return mean if rng is None else mean + jnp.exp(log_variance / 2) * jax.random.normal(rng, mean.shape)

    def pictures(self, params, x):
        constants = params[AUTOENCODER]
        latent = (x / self.latent_scale + self.latent_offset).astype(jax.tree.leaves(constants)[0].dtype)
        return super().pictures(params, self.autoencoder_config().decode(constants, latent).astype(jnp.float32))
