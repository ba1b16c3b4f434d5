"""An autoencoder whose latent holds one of K codes at each place: a vocabulary for images (VQ-VAE,
van den Oord et al., arXiv:1711.00937; VQGAN, Esser et al., arXiv:2012.09841).

Encoder and decoder are those of models/autoencoder.py. The encoder gives one vector per place. The
nearest code of a codebook replaces that vector (nn/codebook.py).

Shapes: B batch, H height, W width, C channels, h and w the latent's height and width, Z latent
channels, K codes.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.models import autoencoder
from bigmodel_jax.models.autoencoder import AutoencoderConfig
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.nn import codebook


class Coded(NamedTuple):
    """image: the reconstruction (B, H, W, C); vectors, codes: the encoder's vectors and their
    nearest codes, (B, h, w, Z) float32 each; ids: the codes' numbers (B, h, w) int32.
    """

    image: jax.Array
    vectors: jax.Array
    codes: jax.Array
    ids: jax.Array


@dataclasses.dataclass(frozen=True)
class DiscreteAutoencoderConfig(AutoencoderConfig):
    """`AutoencoderConfig` with a codebook. The defaults have the sizes of the paper on images."""

    image_shape: tuple[Count, Count, Count] = (256, 256, 3)
    latent_channels: Count = 8
    "values of a code; few of them, so that the codes are all used (arXiv:2110.04627, section 3.2)"
    num_codes: Count = 8192
    "K, the image's vocabulary"

    @property
    def encoded_channels(self) -> int:
        return self.latent_channels

    @property
    def num_tokens(self) -> int:
        """The number of codes that stand for one image."""
        height, width, _ = self.latent_shape
        return height * width

    def encode(self, p: params.Tree, image_BHWC: jax.Array) -> jax.Array:
        """Returns the codes' numbers (B, h, w) int32 for images of -1 .. 1; p: all parameters."""
        return codebook.quantise(p["codebook"], autoencoder.encoded(self, p, image_BHWC)).ids

    def decode(self, p: params.Tree, ids_Bhw: jax.Array) -> jax.Array:
        """Returns the images (B, H, W, C) that codes, by number (B, h, w), stand for; p: all
        parameters.
        """
        codes = codebook.codes_of(p["codebook"], ids_Bhw)
        return autoencoder.decode(self, p, codes.astype(dtype_of(p)))

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "DiscreteAutoencoderConfig":
        return cls((8, 8, 1), (8, 16), blocks_per_level=1, latent_channels=4, norm_groups=4, num_codes=16)


def spec(cfg: DiscreteAutoencoderConfig) -> params.Tree:
    """All parameters of encoder, decoder and codebook."""
    return autoencoder.spec(cfg) | {"codebook": codebook.spec(cfg.num_codes, cfg.latent_channels)}


def dtype_of(p: params.Tree):
    """The dtype in which encoder and decoder compute."""
    return p["encoder"]["enter"]["kernel"].dtype


def apply(
    cfg: DiscreteAutoencoderConfig, p: params.Tree, batch: dict, *, rng=None, train: bool = False, cache=None
) -> Out:
    """`Coded` of batch["image"] (B, H, W, C). The gradients of the image bypass the codebook."""
    image = batch["image"].astype(dtype_of(p))
    found = codebook.quantise(p["codebook"], autoencoder.encoded(cfg, p, image))
    made = autoencoder.decode(cfg, p, codebook.straight_through(found).astype(image.dtype))
    return Out(Coded(made, *found))
