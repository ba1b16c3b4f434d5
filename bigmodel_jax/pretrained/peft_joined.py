"""Converts between the adapters of our matrices and the adapter of a published tensor that joins
them.

A joined tensor holds several of our matrices with their outputs side by side.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The adapter of one of our parameters, seen as a map from `in` inputs to `out` outputs per
    layer.

    - rank, alpha: the adapter's rank r and its scale.
    - a: (lead, in, r); b: (lead, r, out), where `lead` are the axes of layers and experts.
    - magnitude: (lead, out) for DoRA, else None.

    For an embedding `in` counts the rows. A layer without an adapter has zeros in a and b, and
    training leaves both at zero.
    """

    rank: int
    alpha: float
    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None = None


def parted(whole: Matrix, widths: tuple[int, ...]) -> list[Matrix]:
    """Splits the adapter of a joined tensor into the adapters of its parts.

    All parts get the same `a`, since the joined matrix has one input.

    widths: the number of outputs of each part.
    """
    ends = np.cumsum(widths)[:-1]
    parts = np.split(whole.b, ends, axis=-1)
    lengths = [None] * len(widths) if whole.magnitude is None else np.split(whole.magnitude, ends, axis=-1)
    return [dataclasses.replace(whole, b=b, magnitude=m) for b, m in zip(parts, lengths, strict=True)]


def joined(paths: tuple[str, ...], parts: list[Matrix | None], widths: tuple[int, ...], rslora: bool) -> Matrix:
    """The one adapter that computes what the adapters of the parts compute.

    paths: our paths of the parts; parts: their adapters, None for a part without one, whose outputs
    get zeros; widths: the number of outputs of each part.

    If all parts have the same `a`, the result has that `a`; else its rank is the sum of their
    ranks. Raises ValueError for DoRA on some parts only, since the joined adapter has a magnitude
    for every output.
    """
    there = [part for part in parts if part is not None]
    first = there[0]
    if len(parts) == 1:
        return first
    dora = first.magnitude is not None
    if dora and len(there) < len(parts):
        lacks = paths[parts.index(None)]
        raise ValueError(
            f"export: {lacks} has no adapter, and DoRA needs one for the whole tensor that holds it; "
            "without --peft the merged weights "
            "are written"
        )
    magnitude = np.concatenate([part.magnitude for part in there], axis=-1) if dora else None
    if len(there) == len(parts) and all(_is_alike(part, first) for part in there):
        return Matrix(first.rank, first.alpha, first.a, np.concatenate([part.b for part in there], axis=-1), magnitude)
    rank, scale = sum(part.rank for part in there), _scale(first, rslora)
    # Block-diagonal `b`: each part's rows of `b` act on its own outputs only. The joined adapter
    # has the first part's scale, so the other parts' `b` are rescaled.
    b = np.zeros((*first.b.shape[:-2], rank, sum(widths)), first.b.dtype)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            share = (_scale(part, rslora) / scale) * part.b if _scale(part, rslora) != scale else part.b
            b[..., row : row + part.rank, column : column + width] = share
            row += part.rank
        column += width
    a = np.concatenate([part.a for part in there], axis=-1)
    # This alpha gives the joined rank the first part's scale.
    return Matrix(rank, scale * (math.sqrt(rank) if rslora else rank), a, b, magnitude)


def _is_alike(one: Matrix, other: Matrix) -> bool:
    return (one.rank, one.alpha) == (other.rank, other.alpha) and np.array_equal(one.a, other.a)


def _scale(part: Matrix, rslora: bool) -> float:
    return part.alpha / (math.sqrt(part.rank) if rslora else part.rank)
