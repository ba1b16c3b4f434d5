"""EfficientNet-lite: inverted residuals with ReLU6 and no squeeze-and-excitation, in Linen.

Tan & Le, arXiv:1905.11946. The "lite" networks are those of tensorflow/tpu's efficientnet/lite: the
stem and the head have the same width at every scale. Stochastic depth, which the published training
used besides dropout, is not implemented.

Shapes: B batch, H height, W width, C channels. The published weights expect images as (value - 127)
/ 128 for values 0 .. 255.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bigmodel_jax.core.ranges import Blocks, Count, Share, ShareBelowOne
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.cnn import conv_axes
from bigmodel_jax.models.flax_module import from_linen
from bigmodel_jax.models.sizes import Cut, SameLength
from bigmodel_jax.nn import cpu

ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones
EPS = 1e-3  # epsilon of batch norm


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(ModelConfig):
    """EfficientNet-lite (arXiv:1905.11946). Each of the five tuples has one entry per stage.

    The reference implementation is tensorflow/tpu's efficientnet/lite. The defaults are those of
    EfficientNet-lite0.
    """

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)  # height, width and channels
    num_classes: Count = 1000  # number of classes
    repeats: tuple[Blocks, ...] = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
    widths: tuple[Count, ...] = (3, 3, 5, 3, 5, 5, 3)  # kernel widths of the depthwise convolutions
    strides: tuple[Count, ...] = (1, 2, 2, 2, 1, 2, 1)  # stride of the stage's first block
    expansions: tuple[Count, ...] = (1, 6, 6, 6, 6, 6, 6)  # channels inside a block per channel of its input
    channels: tuple[Count, ...] = (16, 24, 40, 80, 112, 192, 320)  # output channels of each stage
    stem_channels: Count = 32  # output channels of the first convolution
    head_channels: Count = 1280  # channels that are pooled for the classifier
    dropout: ShareBelowOne = 0.2  # dropout rate before the classifier
    momentum: Share = 0.99  # momentum of batch norm's running statistics

    SIZES: ClassVar[tuple] = (
        *(SameLength(name, "repeats") for name in ("widths", "strides", "expansions", "channels")),
        *(Cut(name, "mlp") for name in ("stem_channels", "channels", "head_channels")),
    )

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return from_linen(EfficientNet(self), {"image": jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)})

    def blocks(self) -> list[tuple[int, int, int, int]]:
        """Returns (width, stride, expansion, channels) of every block."""
        stages = zip(self.repeats, self.widths, self.strides, self.expansions, self.channels, strict=True)
        return [(k, s if n == 0 else 1, e, c) for repeats, k, s, e, c in stages for n in range(repeats)]

    @classmethod
    def tiny(cls) -> "EfficientNetConfig":
        return cls(
            image_shape=(16, 16, 1),
            num_classes=10,
            repeats=(1, 2),
            widths=(3, 5),
            strides=(1, 2),
            expansions=(1, 4),
            channels=(8, 16),
            stem_channels=8,
            head_channels=32,
            dropout=0.0,
            momentum=0.9,
        )


def conv_init(depthwise: bool):
    """N(0, 2 / fan_out).

    As in the published code, a depthwise convolution counts one output channel.
    """

    def init(key, shape, dtype):
        height, width, _, outputs = shape
        return jax.random.normal(key, shape, dtype) * (2 / (height * width * (1 if depthwise else outputs))) ** 0.5

    return init


def head_init(key, shape, dtype):
    """U(-1/sqrt(classes), 1/sqrt(classes)). The published code takes the output as fan."""
    return jax.random.uniform(key, shape, dtype, -(shape[1] ** -0.5), shape[1] ** -0.5)


def depthwise(x_BHWC, kernel, strides, padding, **options) -> jax.Array:
    """Maps (B, H, W, C) -> (B, H', W', C): a convolution of each channel alone.

    kernel: (height, width, 1, C). On a single CPU device it is a sum of shifted products: XLA's
    grouped convolution took 2 to 8 times as long there, forward and backward.
    """
    if not cpu.active():
        return jax.lax.conv_general_dilated(x_BHWC, kernel, strides, padding, **options)
    pads = jax.lax.padtype_to_pads(x_BHWC.shape[1:3], kernel.shape[:2], strides, padding)
    sizes = [
        (n + sum(pad) - k) // s + 1
        for n, pad, k, s in zip(x_BHWC.shape[1:3], pads, kernel.shape, strides, strict=False)
    ]
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
    out = 0
    for i, j in np.ndindex(*kernel.shape[:2]):
        stops = i + (sizes[0] - 1) * strides[0] + 1, j + (sizes[1] - 1) * strides[1] + 1
        out += x_BHWC[:, i : stops[0] : strides[0], j : stops[1] : strides[1]] * kernel[i, j, 0]
    return out


class ConvNorm(nn.Module):
    """A convolution without bias, then batch norm: (B, H, W, C) -> (B, H', W', features).

    H' and W' are H and W over the stride, rounded up. The padding is "SAME", which puts an odd row
    or column of padding at the lower right.
    """

    features: int
    width: int
    momentum: float
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        axes = (None, None, None, "mlp") if self.depthwise else conv_axes(x_BHWC.shape[-1])
        conv = nn.Conv(
            self.features,
            (self.width, self.width),
            self.stride,
            "SAME",
            feature_group_count=self.features if self.depthwise else 1,
            use_bias=False,
            kernel_init=nn.with_logical_partitioning(conv_init(self.depthwise), axes),
            conv_general_dilated=depthwise if self.depthwise else None,
            name="conv",
        )
        bias, scale = (nn.with_logical_partitioning(init, ("mlp",)) for init in (ZEROS, ONES))
        norm = nn.BatchNorm(
            not train, momentum=self.momentum, epsilon=EPS, bias_init=bias, scale_init=scale, name="norm"
        )
        return norm(conv(x_BHWC))


class Block(nn.Module):
    """An inverted residual: a 1x1 expansion, a depthwise convolution and a 1x1 projection.

    The input is added if the output has its shape.
    """

    width: int
    stride: int
    expansion: int
    features: int
    momentum: float

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        y, inner = x_BHWC, x_BHWC.shape[-1] * self.expansion
        if self.expansion > 1:
            y = nn.relu6(ConvNorm(inner, 1, self.momentum, name="expand")(y, train))
        y = nn.relu6(ConvNorm(inner, self.width, self.momentum, self.stride, True, name="depthwise")(y, train))
        y = ConvNorm(self.features, 1, self.momentum, name="project")(y, train)
        return x_BHWC + y if self.stride == 1 and x_BHWC.shape[-1] == self.features else y


class EfficientNet(nn.Module):
    """The network: images (B, H, W, C) -> logits (B, num_classes)."""

    cfg: EfficientNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        cfg = self.cfg
        x_BHWC = nn.relu6(ConvNorm(cfg.stem_channels, 3, cfg.momentum, 2, name="stem")(x_BHWC, train))
        for n, shape in enumerate(cfg.blocks()):
            x_BHWC = Block(*shape, cfg.momentum, name=f"block{n}")(x_BHWC, train)
        x_BHWC = nn.relu6(ConvNorm(cfg.head_channels, 1, cfg.momentum, name="features")(x_BHWC, train))
        x = nn.Dropout(cfg.dropout)(jnp.mean(x_BHWC, axis=(1, 2)), deterministic=not train)
        kernel = nn.with_logical_partitioning(head_init, ("mlp", None))
        return nn.Dense(cfg.num_classes, kernel_init=kernel, name="head")(x)


PRESETS = {"efficientnet-lite0": EfficientNetConfig()}
