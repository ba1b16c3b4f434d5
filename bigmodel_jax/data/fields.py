"""The declaration of a data row: its arrays by name, each with shape, dtype and logical axes."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a row, without the batch dimension.

    - shape: None where only the data tells it.
    - dtype: the name of its type.
    - axes: a logical axis name for each dimension, which `parallel.rules` maps to mesh axes; ():
      the array is split along the batch alone.
    - evaluation: only evaluation batches may hold the array, and not all of them need it.
    - training: only training batches hold the array, and only an objective that reads it can train.
    """

    shape: tuple[int, ...] | None
    dtype: str = "float32"
    axes: tuple[str | None, ...] = ()
    evaluation: bool = False
    training: bool = False

    def __post_init__(self):
        if self.shape is not None and self.axes and len(self.axes) != len(self.shape):
            raise ValueError(
                f"data: Field(shape={self.shape}, axes={self.axes}): axes must name each dimension, or be ()"
            )


Row = Mapping[str, Field]
WEIGHTS = (
    'add "weights", float32, 1 where a row counts in the loss, declared as Field(()): an evaluation sets it to 0 in the '
    "rows that pad its last batch"
)


def per_token(names: Iterable[str], length: int, dtype: str = "int32", **more: Any) -> dict[str, Field]:
    """Return fields with one value per token: shape (length,), with the logical axis "seq"."""
    return {name: Field((length,), dtype, ("seq",), **more) for name in names}


def per_row(names: Iterable[str], dtype: str = "int32") -> dict[str, Field]:
    """Return fields with one value per row."""
    return {name: Field((), dtype) for name in names}


def in_training(row: Row) -> dict[str, Field]:
    """Return the fields that a training batch holds."""
    return {name: field for name, field in row.items() if not field.evaluation}


def along(row: Row, axis: str) -> dict[str, int]:
    """Return the length of each training array along a logical axis, by name.

    Arrays without that axis are left out.
    """
    found = {}
    for name, field in in_training(row).items():
        if axis in field.axes and field.shape is not None:
            found[name] = field.shape[field.axes.index(axis)]
    return found


def num_tokens(row: Row) -> int:
    """Return the elements of the largest array with a "seq" axis; 0 without such an array."""
    shapes = [field.shape for name, field in row.items() if name in along(row, "seq")]
    return max(map(math.prod, shapes), default=0)


def complete(data: Any, known: Mapping[str, tuple[int, ...] | None]) -> dict[str, Field]:
    """Return the training row of a data config with every shape filled in.

    `known` holds the shapes that the model expects, by name. A shape that neither the row nor the
    model declares is read from the data's first row, and so is a row that declares nothing.
    """
    row = in_training(data.row())
    open_ = [name for name, field in row.items() if field.shape is None]
    # Shapes that the model expects need no look at the data.
    row |= {n: dataclasses.replace(row[n], shape=tuple(known[n])) for n in open_ if known.get(n) is not None}
    if row and not any(field.shape is None for field in row.values()):
        return row
    # The noise makes the row a training row. Only a training row holds the fields of training.
    first = data.open("train").batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
    if not row:
        return {name: Field(x.shape[1:], x.dtype.name) for name, x in first.items()}
    check(row, first)
    return {name: dataclasses.replace(field, shape=first[name].shape[1:]) for name, field in row.items()}


def check(row: Row, batch: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where a batch differs from its row. Undeclared arrays are allowed."""
    for name, field in row.items():
        x = batch.get(name)
        # A training batch may lack the fields of evaluation, and the other way round.
        if x is None and (field.evaluation or field.training):
            continue
        if x is None:
            raise ValueError(f"data: row() declares {name!r}, which the rows do not hold ({', '.join(batch)})")
        # JAX turns an int64 into an int32 when it moves the array to a device.
        dtype, shape = jax.dtypes.canonicalize_dtype(x.dtype).name, x.shape[1:]
        fits = shape == tuple(field.shape) if field.shape is not None else len(field.axes) in (0, len(shape))
        if not fits or dtype != field.dtype:
            declared = f"{field.shape if field.shape is not None else field.axes} {field.dtype}"
            raise ValueError(
                f"data: row() declares {name!r} as {declared}, but the rows hold {shape} {dtype}: "
                f'declare "{name}": Field({shape}, "{dtype}")'
            )
