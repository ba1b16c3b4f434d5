"""The adapter of one matrix of ours, and one of several whose outputs lie side by side in a tensor of PEFT's base."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The adapter of one of our parameters, whose product is seen as a map x (in) -> x (out) for each of its `lead` layers.

    a: (lead, in, r); b: (lead, r, out); magnitude: (lead, out), DoRA's, or None. Of an embedding `in` are the rows. A layer
    without an adapter has zeros in a and b, which training leaves as they are.
    """

    rank: int
    alpha: float
    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None = None


def parted(whole: Matrix, widths: tuple[int, ...]) -> list[Matrix]:
    """The adapter of each part of the outputs: `a` is the same."""
    ends = np.cumsum(widths)[:-1]
    parts = np.split(whole.b, ends, axis=-1)
    lengths = [None] * len(widths) if whole.magnitude is None else np.split(whole.magnitude, ends, axis=-1)
    return [dataclasses.replace(whole, b=b, magnitude=m) for b, m in zip(parts, lengths, strict=True)]


def joined(paths: tuple[str, ...], parts: list[Matrix | None], widths: tuple[int, ...], rslora: bool) -> Matrix:
    """The one adapter that computes what those of the parts do; None: the part has none, and its outputs get zeros.

    Where the parts have one `a`, so has the whole; else its rank is the sum of theirs. ValueError for DoRA on some parts:
    the whole has a length for every output.
    """
    there = [part for part in parts if part is not None]
    first = there[0]
    if len(parts) == 1:
        return first
    dora = first.magnitude is not None
    if dora and len(there) < len(parts):
        lacks = paths[parts.index(None)]
        raise ValueError(
            f"export: {lacks} has no adapter, and DoRA is of the whole tensor that holds it; without --peft the merged weights "
            "are written"
        )
    magnitude = np.concatenate([part.magnitude for part in there], axis=-1) if dora else None
    if len(there) == len(parts) and all(_is_alike(part, first) for part in there):
        return Matrix(first.rank, first.alpha, first.a, np.concatenate([part.b for part in there], axis=-1), magnitude)
    rank, scale = sum(part.rank for part in there), _scale(first, rslora)
    b = np.zeros((*first.b.shape[:-2], rank, sum(widths)), first.b.dtype)
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            share = (_scale(part, rslora) / scale) * part.b if _scale(part, rslora) != scale else part.b
            b[..., row : row + part.rank, column : column + width] = share
            row += part.rank
        column += width
    a = np.concatenate([part.a for part in there], axis=-1)
    return Matrix(rank, scale * (math.sqrt(rank) if rslora else rank), a, b, magnitude)


def _is_alike(one: Matrix, other: Matrix) -> bool:
    return (one.rank, one.alpha) == (other.rank, other.alpha) and np.array_equal(one.a, other.a)


def _scale(part: Matrix, rslora: bool) -> float:
    return part.alpha / (math.sqrt(part.rank) if rslora else part.rank)
