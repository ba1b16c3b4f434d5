"""The additional measurements of a watched step (`report.watch`).

These are norms by layer and kind, attention entropy, units that no token activates, and the
gradient noise scale. All are sums (`Mean`) under "watch/", which are added up like a step's metrics
over microbatches, devices and slices.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.metrics import Mean, divisor
from bigmodel_jax.nn import taps

PREFIX = "watch/"
ACTIVATIONS = ("residual", "attention", "mlp")
TAPS = (*ACTIVATIONS, "entropy", "units")
# "decoder/layers/attn/q" -> "decoder/layers/attn": parameters in a stack are grouped by kind, with
# one norm per layer.
IN_STACK = re.compile(r"((?:.*/)?\w*layers/[^/]+)")

Sums = dict[str, Mean]


def norms(name: str, tree: params.Tree) -> Sums:
    """L2 norms {"watch/<name>/<group>": (L,)} of a tree of parameters by layer; (1,) outside
    stacks.
    """
    squares: dict[str, Any] = {}
    for path, x in params.paths(tree).items():
        found = IN_STACK.match(path)
        group = found[1] if found else path.partition("/")[0]
        x = jnp.square(x.astype(jnp.float32))
        square = x.sum(tuple(range(1, x.ndim))) if found and x.ndim else x.sum().reshape(1)
        squares[group] = squares[group] + square if group in squares else square
    return {f"{PREFIX}{name}/{group}": Mean(jnp.sqrt(x), jnp.ones(())) for group, x in squares.items()}


def no_norms(name: str, tree: params.Tree) -> Sums:
    """The result of `norms` for a tree of zeros."""
    shapes = jax.eval_shape(lambda tree: norms(name, tree), tree)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def tapped(loss: Callable) -> Callable:
    """An objective's `loss` whose metrics also have sums over what the model's layers compute."""

    def run(*args, **kwargs):
        out, found = taps.read(loss, kept, TAPS)(*args, **kwargs)
        return out._replace(metrics=out.metrics | {f"{PREFIX}{name}": mean for name, mean in found.items()})

    return run


def kept(name: str, x: Any) -> Mean:
    """Reduces a tapped value to the sum that the metrics keep: one number per layer."""
    if name == "entropy":
        # The model taps entropy as a function, so that only a watched step computes it.
        return jax.lax.stop_gradient(x())
    x = jax.lax.stop_gradient(x)
    # "units" are (B, T, F) before their activation. A unit is dead if it is positive for no token.
    if name == "units":
        dead = ~(x > 0).any(tuple(range(x.ndim - 1)))
        return Mean(dead.sum(dtype=jnp.float32), jnp.float32(dead.size))
    leaves = [leaf for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    squares = sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in leaves)
    return Mean(jnp.float32(squares), jnp.float32(sum(leaf.size for leaf in leaves)))


# ---------------------------------------------------------------- gradient noise

PIECES, NUMBER = f"{PREFIX}pieces", f"{PREFIX}number"


def piece(grads: params.Tree, mean: Mean) -> Sums:
    """The squared norm of one microbatch's mean gradient, weighted by the microbatch's count."""
    square = sum(jnp.square(g).sum() for g in jax.tree.leaves(grads))
    count = divisor(mean.count)
    # `grads` are sums. The mean gradient's squared norm is square / count^2, and its weight count.
    return {PIECES: Mean(square / count, count), NUMBER: Mean(jnp.ones(()), jnp.zeros(()))}


def noise(sums: Sums, norm: jax.Array, rows: int) -> Sums:
    """The simple noise scale in rows, and the two estimates of which it is the ratio.

    Source: McCandlish et al., arXiv:1812.06162, equations (A.2) and (A.3). `norm` is the norm of
    the whole batch's mean gradient. The results are NaN if the batch was computed in one piece.
    """
    number, small, large = sums[NUMBER].total, sums[PIECES].total / sums[PIECES].count, jnp.square(norm)
    # The paper's B_small is `few`, the rows of a microbatch, and its B_big is `rows`.
    few = rows / number
    signal = (rows * large - few * small) / (rows - few)
    variance = (small - large) / (1 / few - 1 / rows)
    found = {"gradient_signal": signal, "gradient_variance": variance, "noise_scale": variance / signal}
    return {f"{PREFIX}{name}": Mean(x, jnp.ones(())) for name, x in found.items()}


def finish(sums: Sums, norm: jax.Array, rows: int) -> Sums:
    """Converts the sums of a whole batch to the recorded metrics."""
    found = noise(sums, norm, rows)
    for name, mean in sums.items():
        kind, _, number = name.removeprefix(PREFIX).partition("/")
        number = f"/{number}" if number else ""
        if name.startswith(PREFIX) and kind in ACTIVATIONS:
            root = jnp.sqrt(mean.total / mean.count)
            found[f"{PREFIX}activations/{kind}{number}"] = Mean(root, jnp.ones(()))
        elif name.startswith(PREFIX) and name not in (PIECES, NUMBER):
            title = {"entropy": "attention_entropy", "units": "dead_units"}[kind]
            found[f"{PREFIX}{title}{number}"] = mean
    return {name: mean for name, mean in sums.items() if not name.startswith(PREFIX)} | found


def values(sums: Sums) -> dict[str, float | list[float]]:
    """The values for metrics.jsonl: a list over layers per group, and finite numbers for
    the noise.
    """
    found = {name: mean.compute() for name, mean in sums.items() if name.startswith(PREFIX)}
    lists = {name: [float(x) for x in value] for name, value in found.items() if value.ndim}
    return lists | {name: float(x) for name, x in found.items() if not x.ndim and np.isfinite(x)}
