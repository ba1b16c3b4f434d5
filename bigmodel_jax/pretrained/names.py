"""Name tables: which published tensor holds which of our parameters, read in both directions.

In names and comments here, "theirs" is the published side and "ours" is this package's. A row of a
table has our parameter's path and the published tensor's name. In the name {i} counts our first
dimension (the stack of layers) and {e} the second (the experts). Rows whose parameter a config does
not have are skipped, for example a head where embeddings are tied. So one table serves all configs
of a family.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bigmodel_jax.core.params import Param


class Layout(NamedTuple):
    """The conversion between the layout of a published tensor and that of our parameter.

    ours: (their array, our shape) -> our array; theirs: our array -> their array; out_first:
        whether a published matrix has the shape (out, in).
    """

    ours: Callable[[Any, tuple[int, ...]], Any]
    theirs: Callable[[Any], Any]
    out_first: bool = True


def linear(in_dims: int = 1) -> Layout:
    """The layout of torch.nn.Linear: theirs (out, in), ours (in..., out...).

    in_dims: how many of our leading dimensions are the input.
    """
    return Layout(
        ours=lambda x, shape: x.T.reshape(shape),
        theirs=lambda x: x.reshape(math.prod(x.shape[:in_dims]), -1).T,
    )


def kernel(in_dims: int = 1) -> Layout:
    """The layout of GPT-2's Conv1D: theirs (in, out), ours (in..., out...).

    in_dims: as in `linear`.
    """
    return Layout(
        ours=lambda x, shape: x.reshape(shape),
        theirs=lambda x: x.reshape(math.prod(x.shape[:in_dims]), -1),
        out_first=False,
    )


SAME = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x)
# VECTOR is for biases that we keep as (heads, head_dim) and that files keep as one axis.
VECTOR = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x.reshape(-1))
CONV = Layout(
    ours=lambda x, _: x.transpose(2, 3, 1, 0), theirs=lambda x: x.transpose(3, 2, 0, 1)
)  # theirs OIHW, ours HWIO


@dataclasses.dataclass(frozen=True)
class Row:
    """Pairs one published tensor with one of our parameters, or with several that it joins.

    - ours: our parameter's path, or the paths that lie in one tensor, joined along `axis` of it.
    - theirs: the tensor's name, with {i} for a layer and {e} for an expert.
    - layout: how the values lie on both sides.
    - start: the value of {i} at our first layer, or the name of the config field that holds it.
    - every: the step of {i} from one of our layers to the next.
    - interleaved: several parameters alternate entry by entry along `axis`, instead of one after
      another.
    """

    ours: str | tuple[str, ...]
    theirs: str
    layout: Layout = SAME
    axis: int = 0
    start: str | int = 0
    interleaved: bool = False
    every: int = 1

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of our parameters, as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Piece(NamedTuple):
    """One published tensor as a part of our parameter.

    `index` selects the part in our leading dimensions.
    """

    name: str
    row: Row
    index: tuple[int, ...]


class Tensor(NamedTuple):
    """A published tensor that has not been read yet. `read` returns its values."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]


Source = Mapping[str, Tensor]

MOST_UNNAMED = 10_000  # with more missing tensors than this, they are not looked up one by one
MOST_NAMED = 50  # most tensors that one message names


def layer_norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """The two rows of a layer norm, or of another norm with a scale and a bias."""
    return Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")


def dense(ours: str, theirs: str, layout: Layout = linear()) -> tuple[Row, Row]:
    """The two rows of a linear layer, or of a convolution, with a bias."""
    return Row(f"{ours}/kernel", f"{theirs}.weight", layout), Row(f"{ours}/bias", f"{theirs}.bias")


def batch_norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """The four rows of a batch norm with running statistics."""
    statistics = Row(f"{ours}/mean", f"{theirs}.running_mean"), Row(f"{ours}/var", f"{theirs}.running_var")
    return *layer_norm(ours, theirs), *statistics


def pieces(rows: tuple[Row, ...], spec: Mapping[str, Param], cfg: Any) -> Iterator[Piece]:
    """Yields every published tensor that holds parameters of `spec` (by path)."""
    for row in rows:
        # A config has all parameters of a joined row or none, so the first path decides.
        if row.paths[0] not in spec:
            continue
        shape = spec[row.paths[0]].shape
        start = getattr(cfg, row.start) if isinstance(row.start, str) else row.start
        # A table has {e} only beside {i}, so the axis of experts is always the second one.
        stacked = [shape[n] for n, mark in enumerate(("{i}", "{e}")) if mark in row.theirs]
        for index in np.ndindex(*stacked):
            marks = {"i": start + index[0] * row.every if index else 0, "e": index[1] if len(index) > 1 else 0}
            yield Piece(row.theirs.format(**marks), row, index)


def num_pieces(rows: tuple[Row, ...], spec: Mapping[str, Param]) -> int:
    """The number of `pieces`, without making them, since a broken config may ask for a billion."""
    shapes = (
        (spec[row.paths[0]].shape, ("{i}" in row.theirs) + ("{e}" in row.theirs))
        for row in rows
        if row.paths[0] in spec
    )
    return sum(math.prod(shape[:lead]) for shape, lead in shapes)


def their_shapes(piece: Piece, spec: Mapping[str, Param]) -> list[tuple[int, ...]]:
    """The shapes of the row's parameters in the layout of the published tensor."""
    return [
        # The shape follows from the layout itself. `eval_shape` computes it without any values.
        jax.eval_shape(piece.row.layout.theirs, jax.ShapeDtypeStruct(spec[path].shape[len(piece.index) :], "f")).shape
        for path in piece.row.paths
    ]


def joined_shape(shapes: list[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    """The shape of tensors of these shapes joined along `axis`."""
    if len(shapes) == 1:
        return shapes[0]
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    return tuple(shape)


def check(rows: tuple[Row, ...], spec: Mapping[str, Param], cfg: Any, source: Source, ignored: tuple[str, ...]) -> None:
    """Raises one ValueError that names every missing, superfluous and mis-shaped tensor."""
    asked = num_pieces(rows, spec)
    if asked > len(source) + MOST_UNNAMED:
        raise ValueError(
            f"weights do not fit the config: it asks for {asked} tensors, and the files hold {len(source)}"
        )
    shapes: dict[Row, tuple[int, ...]] = {}  # all tensors of one row have the same shape
    expected = {}
    for p in pieces(rows, spec, cfg):
        shapes[p.row] = shapes.get(p.row) or joined_shape(their_shapes(p, spec), p.row.axis)
        expected[p.name] = shapes[p.row]
    # A parameter without a row would be left uninitialised by `to_ours`.
    unmapped = set(spec) - {path for row in rows for path in row.paths}
    assert not unmapped, f"the name table lacks rows for {sorted(unmapped)}"
    wrong = [f"{n} is missing" for n in expected if n not in source]
    wrong += [
        f"{n} has no place in this model"
        for n in source
        if n not in expected and not any(re.fullmatch(pattern, n) for pattern in ignored)
    ]
    wrong += [
        f"{n} has shape {tuple(source[n].shape)}, expected {shape}"
        for n, shape in expected.items()
        if n in source and tuple(source[n].shape) != shape
    ]
    wrong += [
        # numpy would convert integers without an error, so they are refused here.
        f"{n} holds {str(source[n].dtype).lower()}, which are no weights"
        for n in expected
        if n in source and "float" not in str(source[n].dtype)
    ]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise ValueError(f"weights do not fit the config: {'; '.join(wrong[:MOST_NAMED])}{more}")


Index = tuple[slice, ...]


def to_ours(
    rows: tuple[Row, ...],
    spec: Mapping[str, Param],
    cfg: Any,
    source: Source,
    path: str,
    where: Iterable[Index],
    dtype: Any,
) -> dict[Index, np.ndarray]:
    """Assembles parts of one of our parameters from the published tensors.

    path: the parameter; where: the wanted parts, as indices into the parameter. Returns {part:
    array of `dtype`}. Each tensor is read once, and only if a wanted part needs it.
    """
    shape = spec[path].shape
    # `check` has made sure that the pieces below fill every entry.
    parts = {index: np.empty([len(range(n)[s]) for n, s in zip(shape, index, strict=True)], dtype) for index in where}
    for piece in pieces(tuple(r for r in rows if path in r.paths), spec, cfg):
        lead = len(piece.index)
        # Where this layer and expert stand in each wanted part. Other parts do not need the tensor.
        inside = {
            index: at
            for index in parts
            if None not in (at := [_place(i, n, s) for i, n, s in zip(piece.index, shape, index, strict=False)])
        }
        array = read(piece, spec, source, path) if inside else None
        for index, at in inside.items():
            parts[index][tuple(at)] = array[index[lead:]]
    return parts


def _place(i: int, size: int, part: slice) -> int | None:
    """The position of entry `i` inside the slice `part` of a dimension, or None if `i` lies
    outside.
    """
    entries = range(size)[part]
    return entries.index(i) if i in entries else None


def read(piece: Piece, spec: Mapping[str, Param], source: Source, path: str) -> np.ndarray:
    """The values in `piece` of the parameter `path`, in our layout."""
    widths = [s[piece.row.axis] if s else 1 for s in their_shapes(piece, spec)]
    array = source[piece.name].read()
    if len(widths) > 1:
        # The tensor joins several parameters: take the entries of this one.
        part = piece.row.paths.index(path)
        start = sum(widths[:part])
        whole = range(part, sum(widths), len(widths)) if piece.row.interleaved else range(start, start + widths[part])
        array = np.take(array, whole, axis=piece.row.axis)
    return piece.row.layout.ours(array, spec[path].shape[len(piece.index) :])


def to_theirs(piece: Piece, params: Mapping[str, Any]) -> np.ndarray:
    """The published tensor, made from our parameters by path.

    Only the part of a jax.Array that the tensor needs is copied to the host.
    """
    parts = [piece.row.layout.theirs(np.asarray(params[path][piece.index])) for path in piece.row.paths]
    array = parts[0] if len(parts) == 1 else joined(parts, piece.row)
    # A layout may return a transposed view. A safetensors file holds rows one after another.
    return np.asarray(array, order="C")


def num_elements(piece: Piece, spec: Mapping[str, Param]) -> int:
    """The number of values in the published tensor."""
    return sum(math.prod(spec[path].shape[len(piece.index) :]) for path in piece.row.paths)


def joined(parts: list[np.ndarray], row: Row) -> np.ndarray:
    """The published tensor that joins several parameters, which are already in its layout."""
    if not row.interleaved:
        return np.concatenate(parts, axis=row.axis)
    assert row.axis == -1, "only the last dimension is ever interleaved"
    # The new last axis counts the parts, so flattening it makes their entries alternate.
    return np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1)
