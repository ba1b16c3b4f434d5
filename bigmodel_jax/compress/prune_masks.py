"""Chooses the weights to prune: scores of single weights, and masks that keep the highest scores.

Scores are (M, I, O): M matrices (layers and experts), I inputs, O outputs. A mask is True for
weights that stay.
"""

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.params import Param
from bigmodel_jax.models.adapted import matrix


class NofM(NamedTuple):
    """A pattern: of each m consecutive inputs of an output, n weights stay."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m


def parse_pattern(text: str) -> NofM:
    """The pattern of a text such as "2:4". Raises ValueError, one line, for any other form."""
    found = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
    pair = NofM(*map(int, found.groups())) if found else None
    if pair is None or not 0 < pair.n < pair.m:
        raise ValueError(f"--pattern = {text!r}; it must be N:M with 0 < N < M, such as 2:4")
    return pair


def as_matrices(path: str, p: Param, w: jax.Array) -> jax.Array:
    """A parameter as matrices (M, I, O). Raises ValueError if it is a vector or a table."""
    return w.reshape(matrices_shape(path, p))


def matrices_shape(path: str, p: Param) -> tuple[int, int, int]:
    """(M, I, O) of a parameter. Raises ValueError if it is a vector or a table."""
    found = matrix(path, p)
    if found is None or found.table or found.turned:
        raise ValueError(f"prune: {path} is no matrix of a product, but a vector or a table; --targets leaves it out")
    return tuple(math.prod(dims.shape) for dims in (found.lead, found.inner, found.outer))


def magnitude(w: jax.Array) -> jax.Array:
    """|w| in float32, (M, I, O)."""
    return jnp.abs(w.astype(jnp.float32))


def wanda(w: jax.Array, squares: jax.Array) -> jax.Array:
    """|w| times the norm of its input over calibration tokens (Sun et al., arXiv:2306.11695,
    equation 1).

    squares: (M, I), sums of squared inputs.
    """
    return magnitude(w) * jnp.sqrt(squares)[..., None]


def smallest_out(scores: Any, sparsity: float, *, by_output: bool) -> np.ndarray:
    """The mask without the lowest scores: exactly round(sparsity * n) of n weights are dropped.

    by_output: compare the inputs of each output separately, as Wanda does (section 3). Otherwise
    compare all weights of a matrix.
    """
    scores = np.asarray(scores)
    # The last dimension holds the weights that compete with each other.
    rows = scores.swapaxes(1, 2) if by_output else scores.reshape(len(scores), 1, -1)
    kept = _without_lowest(rows, round(sparsity * rows.shape[-1]))
    return kept.swapaxes(1, 2) if by_output else kept.reshape(scores.shape)


def n_of_m(scores: Any, pattern: NofM) -> np.ndarray:
    """The mask with the n highest scores of each m consecutive inputs, per output.

    Raises ValueError unless I is a multiple of m.
    """
    num, inputs, outputs = scores.shape
    if inputs % pattern.m:
        text = f"{pattern.n}:{pattern.m}"
        raise ValueError(f"--pattern = {text!r}: a matrix has {inputs} inputs, which is not a multiple of {pattern.m}")
    blocks = np.asarray(scores).swapaxes(1, 2).reshape(num, -1, pattern.m)
    kept = _without_lowest(blocks, pattern.m - pattern.n)
    return kept.reshape(num, outputs, inputs).swapaxes(1, 2)


def _without_lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """True except for exactly `count` lowest scores along the last dimension, also if some are
    equal.

    This runs on the host: selection takes linear time there, and a device would sort.
    """
    kept = np.ones(scores.shape, bool)
    if count:
        for one, mask in zip(scores, kept, strict=True):  # one matrix at a time, to limit memory
            # `argpartition` drops exactly `count` scores. A threshold would drop ties as well.
            np.put_along_axis(mask, np.argpartition(one, count - 1, axis=-1)[..., :count], False, axis=-1)
    return kept
