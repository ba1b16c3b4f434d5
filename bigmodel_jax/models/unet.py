"""U-Net: a contracting and an expanding path with links between them (Ronneberger et al., arXiv:1505.04597), in Linen.

Convolutions are padded, so that each pixel of the image has logits, and batch norm follows each of them: both as most have
it now, where the paper's convolutions are not padded and its masks are smaller than its images. An image whose sides the
levels do not divide is padded at its lower right, and the logits there are cut off.

Shapes: B batch, H height, W width, C channels, K classes.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigmodel_jax.core.ranges import Count
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.flax_module import from_linen
from bigmodel_jax.models.resnet import KERNEL_INIT, ZEROS, ConvNorm
from bigmodel_jax.models.sizes import Cut

MOST_LEVELS = 8


@dataclasses.dataclass(frozen=True)
class UNetConfig(ModelConfig):
    """Defaults: the paper's network, 31 million parameters."""

    image_shape: tuple[Count, Count, Count] = (512, 512, 1)
    num_classes: Count = 2
    channels: tuple[Count, ...] = (64, 128, 256, 512, 1024)
    "one level each, from the image's resolution down; a level halves height and width"

    SIZES: ClassVar[tuple] = (Cut("channels", "mlp"),)

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return from_linen(UNet(self), {"image": jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)})

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if not 1 <= len(self.channels) <= MOST_LEVELS:
            raise ValueError(f"model.channels = {self.channels}; it must have 1 to {MOST_LEVELS} entries, one a level")

    @classmethod
    def tiny(cls) -> "UNetConfig":
        return cls(image_shape=(14, 18, 1), num_classes=11, channels=(8, 16))


def halved(x_BHWC: jax.Array) -> jax.Array:
    """The largest of each 2x2 square.

    By pairs: the gradient of `max` divides by how many entries equal it, which is 0 where the compiler computes the entries
    a second time, beside the comparison, and rounds them otherwise.
    """
    B, H, W, C = x_BHWC.shape
    squares = x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C)
    rows = jnp.maximum(squares[:, :, 0], squares[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class TwoConvolutions(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        for n in range(2):
            x_BHWC = nn.relu(ConvNorm(self.features, 3, name=f"conv{n}")(x_BHWC, train))
        return x_BHWC


class UpConvolution(nn.Module):
    """A 2x2 convolution transposed with stride 2: each pixel becomes four, as one product and a reshape."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, _ = x_BHWC.shape
        kernel = nn.with_logical_partitioning(KERNEL_INIT, ("embed", "mlp"))
        bias = self.param("bias", nn.with_logical_partitioning(ZEROS, ("mlp",)), (self.features,))
        y = nn.Dense(4 * self.features, use_bias=False, kernel_init=kernel, name="map")(x_BHWC)
        y = y.reshape(B, H, W, 2, 2, self.features).swapaxes(2, 3)
        return y.reshape(B, 2 * H, 2 * W, self.features) + bias


class UNet(nn.Module):
    """Logits (B, H, W, K) of images (B, H, W, C)."""

    cfg: UNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        channels, (height, width) = self.cfg.channels, x_BHWC.shape[1:3]
        multiple = 2 ** (len(channels) - 1)
        x = jnp.pad(x_BHWC, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))
        links = []
        for n, features in enumerate(channels):
            x = TwoConvolutions(features, name=f"down{n}")(halved(x) if n else x, train)
            links.append(x)
        for n in reversed(range(len(channels) - 1)):
            x = UpConvolution(channels[n], name=f"widen{n}")(x)
            x = TwoConvolutions(channels[n], name=f"up{n}")(jnp.concatenate([links[n], x], axis=-1), train)
        kernel = nn.with_logical_partitioning(jax.nn.initializers.lecun_normal(), ("mlp", None))
        return nn.Dense(self.cfg.num_classes, kernel_init=kernel, name="head")(x)[:, :height, :width]


PRESETS = {"unet": UNetConfig()}
