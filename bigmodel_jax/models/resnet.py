"""ResNet-18 to -152 with batch norm (He et al., arXiv:1512.03385), written in Linen.

A bottleneck has its stride in the 3x3 convolution ("v1.5"), as in torchvision and in Hugging Face's
`microsoft/resnet-50`. The tensors are the same under other names: torchvision's `layer1.0.conv2` is
`stage0/block0/conv1` here, and its `downsample.0` is `shortcut`.

Shapes: B batch, H height, W width, C channels.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from bigmodel_jax.core.ranges import Blocks, Count
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.cnn import conv_axes
from bigmodel_jax.models.flax_module import from_linen
from bigmodel_jax.models.sizes import Cut, SameLength

KERNEL_INIT = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al., arXiv:1502.01852
ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones
MOMENTUM, EPS = 0.9, 1e-5  # momentum and epsilon of batch norm; torch writes this momentum as 0.1


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ModelConfig):
    """A residual network for images (He et al., arXiv:1512.03385); defaults: ResNet-50.

    The reference implementations are torchvision's `resnet50` and transformers'
    `ResNetForImageClassification`.
    """

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)  # height, width and channels
    num_classes: Count = 1000  # number of classes
    depths: tuple[Blocks, ...] = (3, 4, 6, 3)  # blocks of each stage; every stage but the first halves height and width
    channels: tuple[Count, ...] = (256, 512, 1024, 2048)  # output channels of each stage; a bottleneck has 1/4 inside
    stem_channels: Count = 64  # output channels of the first convolution
    block: Literal["basic", "bottleneck"] = "bottleneck"  # two 3x3 convolutions, or 1x1, 3x3 and 1x1
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 convolution and pooling, which quarter the sides; cifar: 3x3 at full resolution
    (section 4.2)"""

    SIZES: ClassVar[tuple] = (SameLength("depths", "channels"), Cut("stem_channels", "mlp"), Cut("channels", "mlp"))

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return from_linen(ResNet(self), {"image": jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)})

    def validate(self, parallel) -> None:
        super().validate(parallel)
        if self.block == "bottleneck" and any(n % 4 for n in self.channels):
            raise ValueError(f"model.channels = {self.channels}: a bottleneck needs multiples of 4")

    @classmethod
    def tiny(cls) -> "ResNetConfig":
        return cls(image_shape=(16, 16, 1), num_classes=10, depths=(1, 2), channels=(16, 32), stem_channels=8)


def torch_uniform(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the initial values of torch.nn.Linear, bias included."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def classifier(features: int, num_classes: int, name: str) -> nn.Dense:
    """The head: (B, features) -> logits (B, num_classes), initialised as torch.nn.Linear."""
    kernel = nn.with_logical_partitioning(torch_uniform(features), ("mlp", None))
    return nn.Dense(num_classes, kernel_init=kernel, bias_init=torch_uniform(features), name=name)


class ConvNorm(nn.Module):
    """(B, H, W, C) -> (B, H', W', features): a convolution without bias, then batch norm.

    The padding is half the width on every side, so that H' and W' are H and W over the stride.
    """

    features: int
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        kernel = nn.with_logical_partitioning(KERNEL_INIT, conv_axes(x_BHWC.shape[-1]))
        size, padding = (self.width, self.width), self.width // 2
        conv = nn.Conv(self.features, size, self.stride, padding, use_bias=False, kernel_init=kernel, name="conv")
        bias, scale = (nn.with_logical_partitioning(init, ("mlp",)) for init in (ZEROS, ONES))
        norm = nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPS, bias_init=bias, scale_init=scale, name="norm")
        return norm(conv(x_BHWC))


class Stem(nn.Module):
    """Everything before the first stage: a convolution and, for ImageNet, max-pooling."""

    cfg: ResNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        if self.cfg.stem == "cifar":
            return nn.relu(ConvNorm(self.cfg.stem_channels, 3, name="conv0")(x_BHWC, train))
        x_BHWC = nn.relu(ConvNorm(self.cfg.stem_channels, 7, 2, name="conv0")(x_BHWC, train))
        return nn.max_pool(x_BHWC, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1.

    The input is added to their output. A 1x1 convolution projects it if the shapes differ.
    """

    features: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        inner = self.features // 4
        shapes = [(inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)]
        if not self.bottleneck:
            shapes = [(self.features, 3, self.stride), (self.features, 3, 1)]
        y = x_BHWC
        for i, shape in enumerate(shapes):
            y = ConvNorm(*shape, name=f"conv{i}")(y, train)
            y = nn.relu(y) if i < len(shapes) - 1 else y
        if x_BHWC.shape[-1] != self.features or self.stride > 1:
            x_BHWC = ConvNorm(self.features, 1, self.stride, name="shortcut")(x_BHWC, train)
        return nn.relu(x_BHWC + y)


class Stage(nn.Module):
    """The blocks of one stage, (B, H, W, C) -> (B, H', W', channels[index])."""

    cfg: ResNetConfig
    index: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        for n in range(self.cfg.depths[self.index]):
            stride = 2 if n == 0 and self.index > 0 else 1
            features, bottleneck = self.cfg.channels[self.index], self.cfg.block == "bottleneck"
            x_BHWC = Block(features, stride, bottleneck, name=f"block{n}")(x_BHWC, train)
        return x_BHWC


class Trunk(nn.Module):
    """The network without its head: images (B, H, W, C) -> the last feature map (B, h, w, C')."""

    cfg: ResNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        return stages(self.cfg, x_BHWC, train)


class ResNet(nn.Module):
    """The network: images (B, H, W, C) -> logits (B, num_classes)."""

    cfg: ResNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        pooled = jnp.mean(stages(self.cfg, x_BHWC, train), axis=(1, 2))
        return classifier(pooled.shape[-1], self.cfg.num_classes, "head")(pooled)


def stages(cfg: ResNetConfig, x_BHWC: jax.Array, train: bool) -> jax.Array:
    """The stem and all stages; the calling module owns their parameters."""
    x_BHWC = Stem(cfg, name="stem")(x_BHWC, train)
    for n in range(len(cfg.depths)):
        x_BHWC = Stage(cfg, n, name=f"stage{n}")(x_BHWC, train)
    return x_BHWC


BASIC = ResNetConfig(block="basic", channels=(64, 128, 256, 512))
PRESETS = {
    "resnet-18": dataclasses.replace(BASIC, depths=(2, 2, 2, 2)),
    "resnet-34": dataclasses.replace(BASIC, depths=(3, 4, 6, 3)),
    "resnet-50": ResNetConfig(),
    "resnet-101": ResNetConfig(depths=(3, 4, 23, 3)),
    "resnet-152": ResNetConfig(depths=(3, 8, 36, 3)),
}
