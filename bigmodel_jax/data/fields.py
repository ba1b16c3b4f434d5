"""What a row of data declares of itself: the arrays that it holds, by name, each with shape, type and logical axes."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a row, without the batch in front.

    shape: None where the data alone knows it. axes: a logical name for each dimension, which `parallel.rules` lay on the
    mesh; (): no dimension has one, and every device has its rows' arrays whole. evaluation: batches of an evaluation
    alone hold it, and not all of them need to. training: batches of training alone hold it, and an objective that does not
    take it cannot be trained on them.
    """

    shape: tuple[int, ...] | None
    dtype: str = "float32"
    axes: tuple[str | None, ...] = ()
    evaluation: bool = False
    training: bool = False

    def __post_init__(self):
        if self.shape is not None and self.axes and len(self.axes) != len(self.shape):
            raise ValueError(
                f"data: Field(shape={self.shape}, axes={self.axes}): axes name each dimension, or none where they are ()"
            )


Row = Mapping[str, Field]
WEIGHTS = (
    'add "weights", float32, 1 where a loss is asked for, as Field(()): an evaluation gives the rows that fill up its last '
    "batch weight 0"
)


def per_token(names: Iterable[str], length: int, dtype: str = "int32", **more: Any) -> dict[str, Field]:
    """Fields of one value per token of a row: shape (length,), laid along the sequence."""
    return {name: Field((length,), dtype, ("seq",), **more) for name in names}


def per_row(names: Iterable[str], dtype: str = "int32") -> dict[str, Field]:
    """Fields of one value per row."""
    return {name: Field((), dtype) for name in names}


def in_training(row: Row) -> dict[str, Field]:
    """The fields that a training batch holds."""
    return {name: field for name, field in row.items() if not field.evaluation}


def along(row: Row, axis: str) -> dict[str, int]:
    """The length of each training array along a logical axis, by name; what has no such dimension is left out."""
    found = {}
    for name, field in in_training(row).items():
        if axis in field.axes and field.shape is not None:
            found[name] = field.shape[field.axes.index(axis)]
    return found


def num_tokens(row: Row) -> int:
    """How many places of a row lie along the sequence, in the array that has most of them; 0 where none do."""
    shapes = [field.shape for name, field in row.items() if name in along(row, "seq")]
    return max(map(math.prod, shapes), default=0)


def complete(data: Any, known: Mapping[str, tuple[int, ...] | None]) -> dict[str, Field]:
    """The training row of a data config with every shape.

    known: shapes that the model expects, by name. A shape that neither declares, and the row of a class that declares
    nothing, is read from the data's first row.
    """
    row = in_training(data.row())
    open_ = [name for name, field in row.items() if field.shape is None]
    row |= {n: dataclasses.replace(row[n], shape=tuple(known[n])) for n in open_ if known.get(n) is not None}
    if row and not any(field.shape is None for field in row.values()):
        return row
    first = data.open("train").batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
    if not row:
        return {name: Field(x.shape[1:], x.dtype.name) for name, x in first.items()}
    check(row, first)
    return {name: dataclasses.replace(field, shape=first[name].shape[1:]) for name, field in row.items()}


def check(row: Row, batch: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where a batch is not what its row declares; arrays that are not declared may stand beside."""
    for name, field in row.items():
        x = batch.get(name)
        if x is None and (field.evaluation or field.training):
            continue
        if x is None:
            raise ValueError(f"data: row() declares {name!r}, which the rows do not hold ({', '.join(batch)})")
        # An int64 becomes an int32 on its way to a device.
        dtype, shape = jax.dtypes.canonicalize_dtype(x.dtype).name, x.shape[1:]
        fits = shape == tuple(field.shape) if field.shape is not None else len(field.axes) in (0, len(shape))
        if not fits or dtype != field.dtype:
            declared = f"{field.shape if field.shape is not None else field.axes} {field.dtype}"
            raise ValueError(
                f"data: row() declares {name!r} as {declared}, but the rows hold {shape} {dtype}: "
                f'"{name}": Field({shape}, "{dtype}") is what they are'
            )
