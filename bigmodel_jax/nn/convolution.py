"""Convolutions along time and over spectrograms, written as sums of shifted arrays.

XLA's CPU backend computes grouped convolutions and their gradients slowly. A sum over the few
places of a kernel is elementwise work, which every backend fuses.

Shapes: B batch, T time, F frequency, C channels, D output channels, K width of the kernel.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Init, Param, zeros

WIDTH, STRIDE = 3, 2  # kernel width and stride of the convolutions that halve a spectrogram


def depthwise(x_BTC: jax.Array, kernel_KC: jax.Array) -> jax.Array:
    """Maps (B, T, C) -> (B, T, C): each channel along time with its own kernel.

    It pads with zeros, and equals torch.nn.Conv1d with `groups` = C and a padding of (K - 1) / 2,
    for odd K.
    """
    T, K = x_BTC.shape[1], kernel_KC.shape[0]
    x_BTC = jnp.pad(x_BTC, ((0, 0), (K // 2, K // 2), (0, 0)))
    return sum(jax.lax.slice_in_dim(x_BTC, k, k + T, axis=1) * kernel_KC[k] for k in range(K))


def halved(length):
    """The output length of a convolution of width 3, stride 2 and one zero at each end."""
    return (length - 1) // STRIDE + 1


def _shifted(x_BTFC: jax.Array) -> list[jax.Array]:
    """The input of each of the kernel's 9 places, row by row, (B, T/2, F/2, C) each."""
    T, F = halved(x_BTFC.shape[1]), halved(x_BTFC.shape[2])
    # The padding is one zero at each end. A second zero after the end gives all slices the same
    # length.
    x_BTFC = jnp.pad(x_BTFC, ((0, 0), (1, 2), (1, 2), (0, 0)))
    places = [(i, j) for i in range(WIDTH) for j in range(WIDTH)]
    return [x_BTFC[:, i : i + STRIDE * T : STRIDE, j : j + STRIDE * F : STRIDE] for i, j in places]


def halving_depthwise(x_BTFC: jax.Array, kernel_33C: jax.Array) -> jax.Array:
    """Maps (B, T, F, C) -> (B, T/2, F/2, C): a depthwise 3 x 3 convolution with stride 2.

    Equals torch.nn.Conv2d with padding 1 and `groups` = C.
    """
    kernel_9C = kernel_33C.reshape(-1, kernel_33C.shape[-1])
    return sum(x * w for x, w in zip(_shifted(x_BTFC), kernel_9C, strict=True))


def halving(x_BTF: jax.Array, kernel_331C: jax.Array) -> jax.Array:
    """Maps (B, T, F) -> (B, T/2, F/2, C): a 3 x 3 convolution of one channel with stride 2.

    Equals torch.nn.Conv2d with padding 1.
    """
    # The kernel's 9 places become 9 input channels of one matrix product.
    patches = jnp.concatenate(_shifted(x_BTF[..., None]), axis=-1)
    return patches @ kernel_331C.reshape(-1, kernel_331C.shape[-1])


def dense_spec(width: int, in_dim: int, out_dim: int, *, init: Init) -> dict[str, Param]:
    """kernel (K, C, D) and bias (D,) of a convolution along time over all channels."""
    kernel = Param((width, in_dim, out_dim), (None, None, "embed"), init)
    return {"kernel": kernel, "bias": Param((out_dim,), ("embed",), zeros())}


def dense(p: dict, x_BTC: jax.Array, *, stride: int = 1) -> jax.Array:
    """Maps (B, T, C) -> (B, T / stride, D): a convolution along time over all channels.

    Equals torch.nn.Conv1d with a padding of (K - 1) / 2, for odd K.
    """
    T, K = x_BTC.shape[1], p["kernel"].shape[0]
    x_BTC = jnp.pad(x_BTC, ((0, 0), (K // 2, K // 2), (0, 0)))
    return sum(x_BTC[:, k : k + T : stride] @ p["kernel"][k] for k in range(K)) + p["bias"]
