"""VGG-11 to -19, with or without batch norm (Simonyan & Zisserman, arXiv:1409.1556), in Linen.

The networks are torchvision's. `Network` runs a config's steps, and AlexNet (alexnet.py) is a list
of steps, too. A parameter's name has its step's place in torchvision's Sequential: `features.7` is
`conv7` or `norm7` here, and `classifier.3` is `dense3`.

Shapes: B batch, H height, W width, C channels.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bigmodel_jax.core.ranges import Blocks, Count, ShareBelowOne
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.cnn import conv_axes
from bigmodel_jax.models.flax_module import from_linen
from bigmodel_jax.models.resnet import EPS, KERNEL_INIT, MOMENTUM, ONES, ZEROS
from bigmodel_jax.models.sizes import Cut, SameLength


class Step(NamedTuple):
    """One step of a network. features: the output's channels; width, stride and padding: pixels."""

    kind: Literal["conv", "norm", "relu", "pool", "dense", "dropout"]
    features: int = 0
    width: int = 0
    stride: int = 1
    padding: int = 0


RELU, DROPOUT, NORM = Step("relu"), Step("dropout"), Step("norm")


@dataclasses.dataclass(frozen=True)
class StepsConfig(ModelConfig):
    """Base class of networks that are a list of steps: convolutions, an averaging, dense layers.

    A subclass defines `features`, `classifier` and `initial`.
    """

    image_shape: tuple[Count, Count, Count] = (224, 224, 3)  # height, width and channels
    num_classes: Count = 1000  # number of classes
    pooled_side: Count = 7  # height and width to which the last feature map is averaged
    hidden_dim: Count = 4096  # width of the two hidden dense layers
    dropout: ShareBelowOne = 0.5  # dropout rate at each hidden dense layer

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        return from_linen(Network(self), {"image": jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)})

    def validate(self, parallel) -> None:
        super().validate(parallel)
        for side in self.image_shape[:2]:
            if side_after(self.features(), side) < 1:
                raise ValueError(f"model.image_shape = {self.image_shape}: the pooling leaves nothing of {side} pixels")


@dataclasses.dataclass(frozen=True)
class VGGConfig(StepsConfig):
    """A network of 3x3 convolutions (Simonyan & Zisserman, arXiv:1409.1556); defaults: VGG-16.

    The reference implementation is torchvision's `vgg16` and its siblings.
    """

    depths: tuple[Blocks, ...] = (2, 2, 3, 3, 3)  # convolutions of each stage; pooling follows every stage
    channels: tuple[Count, ...] = (64, 128, 256, 512, 512)  # output channels of each stage
    batch_norm: bool = False  # whether batch norm follows every convolution

    SIZES: ClassVar[tuple] = (SameLength("depths", "channels"), Cut("channels", "mlp"), Cut("hidden_dim", "mlp"))

    def features(self) -> list[Step]:
        """The steps before the averaging."""
        steps = []
        for depth, channels in zip(self.depths, self.channels, strict=True):
            conv = Step("conv", channels, 3, padding=1)
            steps += [*([conv, NORM, RELU] if self.batch_norm else [conv, RELU]) * depth, Step("pool", 0, 2, 2)]
        return steps

    def classifier(self) -> list[Step]:
        """The steps after the averaging."""
        hidden = Step("dense", self.hidden_dim)
        return [hidden, RELU, DROPOUT, hidden, RELU, DROPOUT, Step("dense", self.num_classes)]

    def initial(self, kind: str, fan_in: int) -> tuple[Any, Any]:
        """The initial distributions of kernel and bias of a "conv" or a "dense" step."""
        return KERNEL_INIT if kind == "conv" else jax.nn.initializers.normal(0.01), ZEROS

    @classmethod
    def tiny(cls) -> "VGGConfig":
        sizes = {"image_shape": (16, 16, 1), "num_classes": 10, "depths": (1, 2), "channels": (8, 16)}
        return cls(**sizes, batch_norm=True, pooled_side=2, hidden_dim=32, dropout=0.0)


def side_after(steps: list[Step], side: int) -> int:
    """The height or width of the feature map after the steps; 0 or less if nothing is left."""
    for step in steps:
        if step.kind in ("conv", "pool"):
            side = (side + 2 * step.padding - step.width) // step.stride + 1
    return side


def averages(side: int, to: int) -> np.ndarray:
    """A matrix (to, side) float32 whose row i averages the pixels of torch's i-th adaptive bin.

    The bin runs from floor(i side / to) to ceil((i + 1) side / to).
    """
    rows = np.zeros((to, side), np.float32)
    for i, row in enumerate(rows):
        begin, end = i * side // to, -(-(i + 1) * side // to)
        row[begin:end] = 1 / (end - begin)
    return rows


def average_to(x_BHWC: jax.Array, to: int) -> jax.Array:
    """Maps (B, H, W, C) -> (B, to, to, C), as torch.nn.AdaptiveAvgPool2d does."""
    if x_BHWC.shape[1:3] == (to, to):
        return x_BHWC
    rows, columns = (jnp.asarray(averages(side, to), x_BHWC.dtype) for side in x_BHWC.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x_BHWC)


class Network(nn.Module):
    """Convolutions, averaging, dense layers: images (B, H, W, C) -> logits (B, num_classes)."""

    cfg: Any

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        x = x_BHWC
        for n, step in enumerate(self.cfg.features()):
            x = self.run(n, step, x, train)
        x = average_to(x, self.cfg.pooled_side)
        x = jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)  # torch flattens channels, rows, columns
        for n, step in enumerate(self.cfg.classifier()):
            x = self.run(n, step, x, train)
        return x

    def run(self, n: int, step: Step, x: jax.Array, train: bool) -> jax.Array:
        """Applies step number `n` of its half of the network."""
        if step.kind == "relu":
            return nn.relu(x)
        if step.kind == "dropout":
            return nn.Dropout(self.cfg.dropout)(x, deterministic=not train)
        if step.kind == "pool":
            return nn.max_pool(x, (step.width,) * 2, (step.stride,) * 2)
        if step.kind == "norm":
            bias, scale = (nn.with_logical_partitioning(init, ("mlp",)) for init in (ZEROS, ONES))
            options = {"momentum": MOMENTUM, "epsilon": EPS, "bias_init": bias, "scale_init": scale}
            return nn.BatchNorm(not train, **options, name=f"norm{n}")(x)
        return self.weighted(n, step, x)

    def weighted(self, n: int, step: Step, x: jax.Array) -> jax.Array:
        """A convolution, or a dense layer. The last dense layer's outputs are whole on a device."""
        if step.kind == "conv":
            init, bias = self.cfg.initial("conv", step.width**2 * x.shape[-1])
            options = {
                "kernel_init": nn.with_logical_partitioning(init, conv_axes(x.shape[-1])),
                "bias_init": nn.with_logical_partitioning(bias, ("mlp",)),
            }
            size = (step.width, step.width)
            return nn.Conv(step.features, size, step.stride, step.padding, **options, name=f"conv{n}")(x)
        last = n == len(self.cfg.classifier()) - 1
        init, bias = self.cfg.initial("dense", x.shape[-1])
        options = {
            "kernel_init": nn.with_logical_partitioning(init, ("mlp", None) if last else ("embed", "mlp")),
            "bias_init": nn.with_logical_partitioning(bias, (None,) if last else ("mlp",)),
        }
        return nn.Dense(step.features, **options, name=f"dense{n}")(x)


DEPTHS = {"11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
PRESETS = {
    **{f"vgg{name}": VGGConfig(depths=depths) for name, depths in DEPTHS.items()},
    **{f"vgg{name}-bn": VGGConfig(depths=depths, batch_norm=True) for name, depths in DEPTHS.items()},
}
