"""ResNet-18 to -152 with batch norm (He et al., arXiv:1512.03385), written in Linen.

The stride of a bottleneck lies in its 3x3 convolution ("v1.5"), as in torchvision and Hugging Face's `microsoft/resnet-50`.
Both hold the same tensors: torchvision's `layer1.0.conv2` is `stage0/block0/conv1` here, its `downsample.0` our `shortcut`.

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
MOMENTUM, EPS = 0.9, 1e-5  # of batch norm; torch calls the first one 0.1


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ModelConfig):
    """Defaults: ResNet-50."""

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)
    num_classes: Count = 1000
    depths: tuple[Blocks, ...] = (3, 4, 6, 3)  # blocks of each stage; every stage but the first halves height and width
    channels: tuple[Count, ...] = (
        256,
        512,
        1024,
        2048,
    )  # what leaves each stage; a bottleneck is 4 times narrower inside
    stem_channels: Count = 64
    block: Literal["basic", "bottleneck"] = "bottleneck"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    "imagenet: 7x7 convolution and pooling, a quarter of height and width; cifar: 3x3, all of them (section 4.2)"

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
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): how torch.nn.Linear starts, bias included."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def classifier(features: int, num_classes: int, name: str) -> nn.Dense:
    kernel = nn.with_logical_partitioning(torch_uniform(features), ("mlp", None))
    return nn.Dense(num_classes, kernel_init=kernel, bias_init=torch_uniform(features), name=name)


class ConvNorm(nn.Module):
    """Convolution without bias, padded by half its width on every side, then batch norm."""

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
    cfg: ResNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        if self.cfg.stem == "cifar":
            return nn.relu(ConvNorm(self.cfg.stem_channels, 3, name="conv0")(x_BHWC, train))
        x_BHWC = nn.relu(ConvNorm(self.cfg.stem_channels, 7, 2, name="conv0")(x_BHWC, train))
        return nn.max_pool(x_BHWC, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1 - 3x3 - 1x1, added to the input, which is projected where sizes differ."""

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
    """What leaves the last stage, (B, h, w, C), of images (B, H, W, C): the network without its head."""

    cfg: ResNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        return stages(self.cfg, x_BHWC, train)


class ResNet(nn.Module):
    """Logits (B, num_classes) of images (B, H, W, C)."""

    cfg: ResNetConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        pooled = jnp.mean(stages(self.cfg, x_BHWC, train), axis=(1, 2))
        return classifier(pooled.shape[-1], self.cfg.num_classes, "head")(pooled)


def stages(cfg: ResNetConfig, x_BHWC: jax.Array, train: bool) -> jax.Array:
    """The stem and all stages, as parts of the module that calls it."""
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
