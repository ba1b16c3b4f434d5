"""A small convolutional classifier, written twice in Flax: in NNX and in Linen.

The two versions show both functions of flax_module.py on one network. Each stage is a 3x3
convolution, 2x2 max-pooling, batch norm and ReLU. A hidden layer with dropout and the class head
follow. Kernels carry logical axes: "embed" for input channels (sharded over fsdp) and "mlp" for
output channels (sharded over tensor).

Shapes: B batch, H height, W width, C channels.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from bigmodel_jax.core import initial
from bigmodel_jax.core.initial import Initial
from bigmodel_jax.core.ranges import Count, NonNegative, ShareBelowOne
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.flax_module import from_linen, from_nnx
from bigmodel_jax.nn.activations import ACTIVATIONS, Activation

ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones
# Momentum of batch norm's running statistics. Flax's default, 0.99, is too slow for runs of a few
# hundred steps.
MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class CNNConfig(ModelConfig):
    """A small convolutional classifier of images, with one stage per entry of `channels`.

    It has no paper of its own. Its two implementations, NNX and Linen, are each other's reference.
    """

    image_shape: tuple[Count, Count, Count] = (28, 28, 1)  # height, width and channels
    num_classes: Count = 10  # number of classes
    channels: tuple[Count, ...] = (32, 64)  # output channels of each stage; a stage halves height and width
    hidden_dim: Count = 128  # width of the layer before the head
    dropout: ShareBelowOne = 0.0  # dropout rate after the hidden layer, in training
    activation: Activation = "relu"  # activation of the stages and the hidden layer
    init: Initial = "default"  # distribution of kernels; default: He's normal
    init_std: NonNegative = 0.02  # standard deviation of "normal", "truncated_normal" and "uniform"
    door: Literal["nnx", "linen"] = "nnx"  # which of the two implementations is used

    def inputs(self):
        return {"image": self.image_shape}

    def make(self) -> Model:
        if self.door == "nnx":
            return from_nnx(lambda rngs: NnxCNN(self, rngs))
        return from_linen(LinenCNN(self), {"image": jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)})

    def validate(self, parallel) -> None:
        super().validate(parallel)
        smallest = min(self.image_shape[:2])
        if smallest < 2 ** len(self.channels):
            raise ValueError(
                f"model.channels = {self.channels}: {len(self.channels)} stages halve an image of {smallest} pixels to nothing"
            )

    @classmethod
    def tiny(cls) -> "CNNConfig":
        return cls(image_shape=(8, 8, 1), channels=(8, 16), hidden_dim=16)


def kernel_init(cfg: CNNConfig, axes: tuple[str | None, ...]) -> tuple[Callable, tuple[str | None, ...]]:
    """Returns (initial distribution, logical axes) of a kernel.

    The default is He's normal distribution, for ReLU (arXiv:1502.01852).
    """
    return initial.initializer("he_normal" if cfg.init == "default" else cfg.init, cfg.init_std, axes), axes


def conv_axes(in_channels: int) -> tuple[str | None, ...]:
    """The logical axes of a convolution's kernel (height, width, in_channels, out_channels)."""
    return (None, None, "embed" if in_channels > 1 else None, "mlp")


def max_pool(x_BHWC: jax.Array) -> jax.Array:
    """Maps (B, H, W, C) -> (B, H // 2, W // 2, C): the maximum of each 2x2 square.

    Odd edges are cut off. It is a reshape and a `max`: on a CPU the gradient of Flax's windowed
    `max_pool` takes twice the time of the convolutions.
    """
    B, H, W, C = x_BHWC.shape
    squares = x_BHWC[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C)
    return squares.max(axis=(2, 4))


# ---- NNX ----
class NnxCNN(nnx.Module):
    """The classifier as an NNX module: images (B, H, W, C) -> logits (B, num_classes)."""

    def __init__(self, cfg: CNNConfig, rngs: nnx.Rngs):
        bias = nnx.with_partitioning(ZEROS, ("mlp",))
        scale = nnx.with_partitioning(ONES, ("mlp",))
        size = (cfg.image_shape[2], *cfg.channels)
        for i, (n_in, n_out) in enumerate(itertools.pairwise(size)):
            kernel = nnx.with_partitioning(*kernel_init(cfg, conv_axes(n_in)))
            setattr(self, f"conv{i}", nnx.Conv(n_in, n_out, (3, 3), kernel_init=kernel, use_bias=False, rngs=rngs))
            norm = nnx.BatchNorm(n_out, momentum=MOMENTUM, bias_init=bias, scale_init=scale, rngs=rngs)
            setattr(self, f"norm{i}", norm)
        flat = math.prod(n >> len(cfg.channels) for n in cfg.image_shape[:2]) * size[-1]
        kernel = nnx.with_partitioning(*kernel_init(cfg, ("embed", "mlp")))
        self.hidden = nnx.Linear(flat, cfg.hidden_dim, kernel_init=kernel, bias_init=bias, rngs=rngs)
        self.dropout = nnx.Dropout(cfg.dropout, rngs=rngs)
        kernel = nnx.with_partitioning(*kernel_init(cfg, ("mlp", None)))
        self.head = nnx.Linear(cfg.hidden_dim, cfg.num_classes, kernel_init=kernel, rngs=rngs)
        self.num_stages, self.activation = len(cfg.channels), cfg.activation

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        dtype = x_BHWC.dtype
        for i in range(self.num_stages):
            x_BHWC = max_pool(getattr(self, f"conv{i}")(x_BHWC))
            # NNX's batch norm returns float32, the dtype of its statistics.
            x_BHWC = ACTIVATIONS[self.activation](getattr(self, f"norm{i}")(x_BHWC).astype(dtype))
        x = ACTIVATIONS[self.activation](self.hidden(x_BHWC.reshape(x_BHWC.shape[0], -1)))
        return self.head(self.dropout(x))


# ---- Linen ----
class LinenCNN(nn.Module):
    """The classifier as a Linen module: images (B, H, W, C) -> logits (B, num_classes)."""

    cfg: CNNConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        bias = nn.with_logical_partitioning(ZEROS, ("mlp",))
        scale = nn.with_logical_partitioning(ONES, ("mlp",))
        for i, n_out in enumerate(self.cfg.channels):
            kernel = nn.with_logical_partitioning(*kernel_init(self.cfg, conv_axes(x_BHWC.shape[-1])))
            x_BHWC = max_pool(nn.Conv(n_out, (3, 3), kernel_init=kernel, use_bias=False, name=f"conv{i}")(x_BHWC))
            norm = nn.BatchNorm(momentum=MOMENTUM, bias_init=bias, scale_init=scale, name=f"norm{i}")
            x_BHWC = ACTIVATIONS[self.cfg.activation](norm(x_BHWC, use_running_average=not train))
        kernel = nn.with_logical_partitioning(*kernel_init(self.cfg, ("embed", "mlp")))
        hidden = nn.Dense(self.cfg.hidden_dim, kernel_init=kernel, bias_init=bias, name="hidden")
        x = ACTIVATIONS[self.cfg.activation](hidden(x_BHWC.reshape(x_BHWC.shape[0], -1)))
        x = nn.Dropout(self.cfg.dropout)(x, deterministic=not train)
        kernel = nn.with_logical_partitioning(*kernel_init(self.cfg, ("mlp", None)))
        return nn.Dense(self.cfg.num_classes, kernel_init=kernel, name="head")(x)
