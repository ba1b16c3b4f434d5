"""A small convolutional classifier, written twice in Flax: one network through both of `flax_module`'s doors.

B batch, H height, W width, C channels. Every stage: 3x3 convolution, 2x2 max-pooling, batch norm, ReLU; then one hidden
layer with dropout, and the class head. Kernels carry logical axes: input channels "embed" (stored over fsdp), output
channels "mlp" (split over tensor).
"""

import dataclasses
import itertools
import math
from typing import Literal

import jax
import numpy as np
from flax import linen as nn
from flax import nnx

from bigmodel_jax.core.ranges import Count, ShareBelowOne
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.flax_module import from_linen, from_nnx

KERNEL_INIT = jax.nn.initializers.he_normal()  # for ReLU: He et al., arXiv:1502.01852
ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones
MOMENTUM = 0.9  # of the running statistics: runs of a few hundred steps would never reach Flax's default 0.99


@dataclasses.dataclass(frozen=True)
class CNNConfig(ModelConfig):
    """A small convolutional classifier of images, one stage per entry of `channels`."""

    image_shape: tuple[Count, Count, Count] = (28, 28, 1)
    num_classes: Count = 10
    channels: tuple[Count, ...] = (32, 64)  # one stage each; a stage halves height and width
    hidden_dim: Count = 128
    dropout: ShareBelowOne = 0.0
    door: Literal["nnx", "linen"] = "nnx"

    def make(self) -> Model:
        if self.door == "nnx":
            return from_nnx(lambda rngs: NnxCNN(self, rngs))
        return from_linen(LinenCNN(self), {"image": np.zeros((1, *self.image_shape), np.float32)})

    def validate(self, parallel) -> None:
        smallest = min(self.image_shape[:2])
        if smallest < 2 ** len(self.channels):
            raise ValueError(
                f"model.channels = {self.channels}: {len(self.channels)} stages halve an image of {smallest} pixels to nothing"
            )

    @classmethod
    def tiny(cls) -> "CNNConfig":
        return cls(image_shape=(8, 8, 1), channels=(8, 16), hidden_dim=16)


def conv_axes(in_channels: int) -> tuple[str | None, ...]:
    return (None, None, "embed" if in_channels > 1 else None, "mlp")


def max_pool(x_BHWC: jax.Array) -> jax.Array:
    """Largest of each 2x2 square, an odd last row or column left out.

    By reshape: the gradient of Flax's windowed `max_pool` takes twice the time of the convolutions on a CPU.
    """
    B, H, W, C = x_BHWC.shape
    squares = x_BHWC[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, C)
    return squares.max(axis=(2, 4))


# ---- NNX ----
class NnxCNN(nnx.Module):
    def __init__(self, cfg: CNNConfig, rngs: nnx.Rngs):
        bias = nnx.with_partitioning(ZEROS, ("mlp",))
        scale = nnx.with_partitioning(ONES, ("mlp",))
        size = (cfg.image_shape[2], *cfg.channels)
        for i, (n_in, n_out) in enumerate(itertools.pairwise(size)):
            kernel = nnx.with_partitioning(KERNEL_INIT, conv_axes(n_in))
            setattr(self, f"conv{i}", nnx.Conv(n_in, n_out, (3, 3), kernel_init=kernel, use_bias=False, rngs=rngs))
            norm = nnx.BatchNorm(n_out, momentum=MOMENTUM, bias_init=bias, scale_init=scale, rngs=rngs)
            setattr(self, f"norm{i}", norm)
        flat = math.prod(n >> len(cfg.channels) for n in cfg.image_shape[:2]) * size[-1]
        kernel = nnx.with_partitioning(KERNEL_INIT, ("embed", "mlp"))
        self.hidden = nnx.Linear(flat, cfg.hidden_dim, kernel_init=kernel, bias_init=bias, rngs=rngs)
        self.dropout = nnx.Dropout(cfg.dropout, rngs=rngs)
        kernel = nnx.with_partitioning(KERNEL_INIT, ("mlp", None))
        self.head = nnx.Linear(cfg.hidden_dim, cfg.num_classes, kernel_init=kernel, rngs=rngs)
        self.num_stages = len(cfg.channels)

    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        dtype = x_BHWC.dtype
        for i in range(self.num_stages):
            x_BHWC = max_pool(getattr(self, f"conv{i}")(x_BHWC))
            # NNX's batch norm answers in float32, its statistics' dtype.
            x_BHWC = nnx.relu(getattr(self, f"norm{i}")(x_BHWC).astype(dtype))
        x = nnx.relu(self.hidden(x_BHWC.reshape(x_BHWC.shape[0], -1)))
        return self.head(self.dropout(x))


# ---- Linen ----
class LinenCNN(nn.Module):
    cfg: CNNConfig

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        bias = nn.with_logical_partitioning(ZEROS, ("mlp",))
        scale = nn.with_logical_partitioning(ONES, ("mlp",))
        for i, n_out in enumerate(self.cfg.channels):
            kernel = nn.with_logical_partitioning(KERNEL_INIT, conv_axes(x_BHWC.shape[-1]))
            x_BHWC = max_pool(nn.Conv(n_out, (3, 3), kernel_init=kernel, use_bias=False, name=f"conv{i}")(x_BHWC))
            norm = nn.BatchNorm(momentum=MOMENTUM, bias_init=bias, scale_init=scale, name=f"norm{i}")
            x_BHWC = nn.relu(norm(x_BHWC, use_running_average=not train))
        kernel = nn.with_logical_partitioning(KERNEL_INIT, ("embed", "mlp"))
        hidden = nn.Dense(self.cfg.hidden_dim, kernel_init=kernel, bias_init=bias, name="hidden")
        x = nn.relu(hidden(x_BHWC.reshape(x_BHWC.shape[0], -1)))
        x = nn.Dropout(self.cfg.dropout)(x, deterministic=not train)
        kernel = nn.with_logical_partitioning(KERNEL_INIT, ("mlp", None))
        return nn.Dense(self.cfg.num_classes, kernel_init=kernel, name="head")(x)
