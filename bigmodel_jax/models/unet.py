"""U-Net: a contracting and an expanding path with skip connections, in Linen.

Ronneberger et al., arXiv:1505.04597. Convolutions are padded, so that each pixel of the image has
logits, and batch norm follows each of them, as in most implementations today. The paper's
convolutions are not padded, and its masks are smaller than its images. An image whose sides are no
multiples of the levels' scale is padded at its lower right, and the logits there are cut off.

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
    """A segmentation network (Ronneberger et al., arXiv:1505.04597).

    The defaults are those of the paper's network, with 31 million parameters.
    """

    image_shape: tuple[Count, Count, Count] = (512, 512, 1)  # height, width and channels
    num_classes: Count = 2  # number of classes
    channels: tuple[Count, ...] = (64, 128, 256, 512, 1024)
    "channels of each level, from full resolution down; a level halves height and width"

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
    """Maps (B, H, W, C) -> (B, H / 2, W / 2, C): the maximum of each 2x2 square.

    The maximum is taken of pairs. The gradient of `max` divides by the number of entries that equal
    the maximum. That number is 0 if the compiler recomputes the entries for the comparison and
    rounds them differently.
    """
    B, H, W, C = x_BHWC.shape
    squares = x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C)
    rows = jnp.maximum(squares[:, :, 0], squares[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class TwoConvolutions(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU: (B, H, W, C) -> (B, H, W, features)."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        for n in range(2):
            x_BHWC = nn.relu(ConvNorm(self.features, 3, name=f"conv{n}")(x_BHWC, train))
        return x_BHWC


class UpConvolution(nn.Module):
    """A transposed 2x2 convolution with stride 2: (B, H, W, C) -> (B, 2 H, 2 W, features).

    Each pixel becomes four, by one product and a reshape.
    """

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
    """The network: images (B, H, W, C) -> logits (B, H, W, K)."""

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
