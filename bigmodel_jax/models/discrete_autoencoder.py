"""An autoencoder whose latent holds one of K codes at each place: a vocabulary for images (VQ-VAE,
van den Oord et al., arXiv:1711.00937).

Encoder and decoder are those of models/autoencoder.py. The encoder gives one vector per place,
whose values are rounded to a few levels (nn/fsq.py).

Shapes: B batch, H height, W width, C channels, h and w the latent's height and width, Z latent
channels, K codes.
"""

import dataclasses
import functools

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Classes, Count
from bigmodel_jax.models import autoencoder
from bigmodel_jax.models.autoencoder import AutoencoderConfig
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.nn import fsq


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coded:
    """image: the reconstruction (B, H, W, C); ids: the codes' numbers (B, h, w) int32; num_codes:
    K.
    """

    image: jax.Array
    ids: jax.Array
    num_codes: int = dataclasses.field(metadata={"static": True})


MOST_CODES = 1 << 20  # a decoder's vocabulary has no more, and numbers of codes are int32


@dataclasses.dataclass(frozen=True)
class DiscreteAutoencoderConfig(AutoencoderConfig):
    """`AutoencoderConfig` with a latent of codes."""

    image_shape: tuple[Count, Count, Count] = (256, 256, 3)
    latent_channels: Count = 4
    "values of a code"
    levels: Classes = 8
    "levels of a value: K = levels ** latent_channels"

    @property
    def num_codes(self) -> int:
        """K, the image's vocabulary."""
        return self.levels**self.latent_channels

    @property
    def encoded_channels(self) -> int:
        return self.latent_channels

    @property
    def num_tokens(self) -> int:
        """The number of codes that stand for one image."""
        height, width, _ = self.latent_shape
        return height * width

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.num_codes > MOST_CODES:
            raise ValueError(
                f"model.levels = {self.levels} and model.latent_channels = {self.latent_channels} make "
                f"{self.num_codes:,} codes (levels ** latent_channels); at most {MOST_CODES:,} are allowed"
            )

    def encode(self, p: params.Tree, image_BHWC: jax.Array) -> jax.Array:
        """Returns the codes' numbers (B, h, w) int32 for images of -1 .. 1; p: all parameters."""
        return fsq.quantize(autoencoder.encoded(self, p, image_BHWC), self.levels).ids

    def decode(self, p: params.Tree, ids_Bhw: jax.Array) -> jax.Array:
        """Returns the images (B, H, W, C) that codes, by number (B, h, w), stand for; p: all
        parameters.
        """
        codes = fsq.codes_of(ids_Bhw, self.levels, self.latent_channels)
        return autoencoder.decode(self, p, codes.astype(dtype_of(p)))

    def make(self) -> Model:
        return Model(autoencoder.spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "DiscreteAutoencoderConfig":
        return cls((8, 8, 1), (8, 16), blocks_per_level=1, latent_channels=2, norm_groups=4, levels=4)


def dtype_of(p: params.Tree):
    """The dtype in which encoder and decoder compute."""
    return p["encoder"]["enter"]["kernel"].dtype


def apply(
    cfg: DiscreteAutoencoderConfig, p: params.Tree, batch: dict, *, rng=None, train: bool = False, cache=None
) -> Out:
    """`Coded` of batch["image"] (B, H, W, C)."""
    image = batch["image"].astype(dtype_of(p))
    codes, ids = fsq.quantize(autoencoder.encoded(cfg, p, image), cfg.levels)
    made = autoencoder.decode(cfg, p, codes.astype(image.dtype))
    return Out(Coded(made, ids, cfg.num_codes))
