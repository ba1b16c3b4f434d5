"""Initial distributions by name, for any spec's weights. Fan-in and fan-out follow from logical
axes.

The distributions are those of `jax.nn.initializers`. As there, the normal distributions of He,
LeCun and Xavier are truncated at two standard deviations and rescaled, so that the variance is the
paper's. Xavier: Glorot & Bengio 2010; He: arXiv:1502.01852; LeCun: "Efficient BackProp", 1998;
orthogonal: Saxe et al., arXiv:1312.6120.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, Tree

Initial = Literal[
    "default",
    "normal",
    "truncated_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
]

COPIES = {"layers", "experts"}  # leading axes that count separate weights; they are no part of a fan
HEADS = {"heads", "kv_heads"}
CUT = 0.87962566103423978  # the standard deviation of a standard normal distribution truncated at +-2

BY_STD = {
    "normal": jax.nn.initializers.normal,
    "truncated_normal": lambda std: jax.nn.initializers.truncated_normal(std / CUT),
    "uniform": lambda std: centred_uniform(std),
}
BY_FANS = {
    "xavier_normal": jax.nn.initializers.glorot_normal,
    "xavier_uniform": jax.nn.initializers.glorot_uniform,
    "glorot_normal": jax.nn.initializers.glorot_normal,
    "glorot_uniform": jax.nn.initializers.glorot_uniform,
    "he_normal": jax.nn.initializers.he_normal,
    "he_uniform": jax.nn.initializers.he_uniform,
    "lecun_normal": jax.nn.initializers.lecun_normal,
    "lecun_uniform": jax.nn.initializers.lecun_uniform,
}


def centred_uniform(std: float) -> Callable:
    """Uniform around 0 with this standard deviation. JAX's own `uniform` starts at 0."""
    bound = 3**0.5 * std
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def initializer(name: Initial, std: float, axes: tuple[str | None, ...]) -> Callable:
    """fn(key, shape, dtype) for a weight with these logical axes.

    std: the standard deviation of "normal", "truncated_normal" and "uniform". The others ignore it.
    """
    # Each layer and each expert is drawn as a weight of its own.
    if axes[0] in COPIES:
        return params.each(initializer(name, std, axes[1:]))
    if name in BY_STD:
        return BY_STD[name](std)
    ins, outs = fans(axes)
    return orthogonal(ins, outs) if name == "orthogonal" else BY_FANS[name](ins, outs)


def fans(axes: tuple[str | None, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(input dimensions, output dimensions) of one weight.

    All other dimensions are the receptive field of a convolution. Raises ValueError for vectors.
    """
    every = tuple(range(len(axes)))
    if len(axes) < 2:
        raise ValueError(f"a parameter with axes {axes} has no fan-in and fan-out: it is not a matrix")
    if axes[0] in HEADS:  # (heads, head_dim, embed): the output projection of attention
        return every[:-1], every[-1:]
    if len(axes) == 2:  # (vocab, embed): a head maps embed to vocab
        return (every[1:], every[:1]) if axes[0] == "vocab" else (every[:1], every[1:])
    if axes[0] == "embed" or HEADS & set(axes):  # (embed, heads, head_dim): a projection of attention's input
        return every[:1], every[1:]
    return every[-2:-1], every[-1:]


def _spread(name: Initial, axes: tuple[str | None, ...]) -> Callable[[tuple[int, ...]], float] | None:
    """The factor of the standard deviation that depends on the shape; None if fans do not
    matter."""
    if name in BY_STD:
        return None
    lead = 0
    while axes[lead] in COPIES:
        lead += 1
    ins, outs = fans(axes[lead:])

    def of_shape(shape: tuple[int, ...]) -> float:
        rows, columns = (math.prod(shape[lead:][i] for i in side) for side in (ins, outs))
        both = rows + columns if name.startswith(("xavier", "glorot")) else rows
        return (max(rows, columns) if name == "orthogonal" else both) ** -0.5

    return of_shape


def orthogonal(ins: tuple[int, ...], outs: tuple[int, ...]) -> Callable:
    """A weight whose rows or columns, whichever are fewer, are orthonormal.

    The rows are those of the weight as an (inputs, outputs) matrix.
    """

    def draw(key, shape, dtype=jnp.float32):
        # This index is the boundary between the input dimensions and the output dimensions.
        split = min(outs) if min(outs) > max(ins) else min(ins)
        matrix = (math.prod(shape[:split]), math.prod(shape[split:]))
        return jax.nn.initializers.orthogonal()(key, matrix, dtype).reshape(shape)

    return draw


def weights(spec: Tree, name: Initial, std: float) -> Tree:
    """`spec` with every kernel, and the head's table, drawn from this distribution.

    "default" changes nothing. Biases, norms and embeddings keep their own distribution, because
    they have no fan-in.
    """
    if name == "default":
        return spec
    text = f"{name}({std:.4g})" if name in BY_STD else name

    def one(path: str, p: Param) -> Param:
        if not (path.endswith("kernel") or path == "head/table"):
            return p
        return dataclasses.replace(p, init=Init(text, initializer(name, std, p.axes), _spread(name, p.axes)))

    return params.from_paths({path: one(path, p) for path, p in params.paths(spec).items()})
