"""A small residual network over a board, with a policy head and a value head, as in AlphaZero.

B batch, H height, W width, C channels. There is no batch norm, so that a position has the same
value in self-play and in training.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bigmodel_jax.core.params import Param, Tree, normal, zeros
from bigmodel_jax.core.ranges import Count
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.nn.linear import linear, linear_spec


@dataclasses.dataclass(frozen=True)
class BoardConfig(ModelConfig):
    """A residual network that scores the moves and the value of a board position.

    The architecture is AlphaZero's (Silver et al., arXiv:1712.01815), smaller and without batch
    norm: a 3x3 convolution, residual blocks of two 3x3 convolutions, and one hidden layer for both
    heads.
    """

    board_shape: tuple[Count, Count, Count] = (6, 7, 2)  # height, width and input planes
    num_moves: Count = 7  # moves that the policy chooses from
    channels: Count = 32  # channels of every convolution
    num_blocks: Count = 2  # residual blocks
    hidden_dim: Count = 64  # width of the hidden layer below both heads

    def inputs(self):
        return {"board": self.board_shape}

    def make(self) -> Model:
        return Model(spec(self), functools.partial(apply, self))

    @classmethod
    def tiny(cls) -> "BoardConfig":
        return cls(channels=8, num_blocks=1, hidden_dim=16)


def convolution_spec(n_in: int, n_out: int) -> Tree:
    """kernel (3, 3, n_in, n_out) with He's normal initial values, and bias (n_out,)."""
    kernel = Param((3, 3, n_in, n_out), (None, None, None, "mlp"), normal((2 / (9 * n_in)) ** 0.5))
    return {"kernel": kernel, "bias": Param((n_out,), ("mlp",), zeros())}


def spec(cfg: BoardConfig) -> Tree:
    """The stem, two convolutions per block, the hidden layer, and the policy and value heads."""
    height, width, planes = cfg.board_shape
    tree = {"stem": convolution_spec(planes, cfg.channels)}
    for i in range(cfg.num_blocks):
        tree[f"block{i}"] = {name: convolution_spec(cfg.channels, cfg.channels) for name in ("first", "second")}
    flat = height * width * cfg.channels
    tree["hidden"] = linear_spec(flat, cfg.hidden_dim, axes=("embed", "mlp"), init=normal((2 / flat) ** 0.5), bias=True)
    tree["policy"] = linear_spec(cfg.hidden_dim, cfg.num_moves, axes=("mlp", None), bias=True)
    tree["value"] = linear_spec(cfg.hidden_dim, 1, axes=("mlp", None), bias=True)
    return tree


def convolution(p: Tree, x_BHWC: jax.Array) -> jax.Array:
    """Maps (B, H, W, n_in) -> (B, H, W, n_out): a 3x3 convolution with "SAME" padding."""
    kernel = p["kernel"]
    return (
        jax.lax.conv_general_dilated(x_BHWC, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        + p["bias"]
    )


def apply(cfg: BoardConfig, p: Tree, batch: dict, *, rng=None, train=False, cache=None) -> Out:
    """Returns (B, num_moves + 1): the moves' logits, then the value in -1 .. 1.

    batch: board (B, H, W, C).
    """
    x = jax.nn.relu(convolution(p["stem"], batch["board"].astype(p["stem"]["kernel"].dtype)))
    for i in range(cfg.num_blocks):
        block = p[f"block{i}"]
        x = jax.nn.relu(x + convolution(block["second"], jax.nn.relu(convolution(block["first"], x))))
    x = jax.nn.relu(linear(p["hidden"], x.reshape(len(x), -1)))
    return Out(jnp.concatenate([linear(p["policy"], x), jnp.tanh(linear(p["value"], x))], -1))
