"""Name tables: which of their tensors is which of our parameters, one row each, read in both directions.

A row names our path and their tensor; {i} in theirs counts our first (stacked) dimension, {e} our second (experts).
Rows whose parameter a config does not have (a head where embeddings are tied) are skipped, so a family has one table.
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
    """How one tensor lies in memory, both ways: ours(their array, our shape), theirs(our array).

    out_first: theirs is a matrix (out, in).
    """

    ours: Callable[[Any, tuple[int, ...]], Any]
    theirs: Callable[[Any], Any]
    out_first: bool = True


def linear(in_dims: int = 1) -> Layout:
    """torch.nn.Linear: theirs (out, in); ours (in..., out...), its first `in_dims` dimensions being the input."""
    return Layout(
        ours=lambda x, shape: x.T.reshape(shape),
        theirs=lambda x: x.reshape(math.prod(x.shape[:in_dims]), -1).T,
    )


def kernel(in_dims: int = 1) -> Layout:
    """theirs (in, out), as in GPT-2's Conv1D."""
    return Layout(
        ours=lambda x, shape: x.reshape(shape),
        theirs=lambda x: x.reshape(math.prod(x.shape[:in_dims]), -1),
        out_first=False,
    )


SAME = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x)
VECTOR = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x.reshape(-1))
CONV = Layout(ours=lambda x, _: x.transpose(2, 3, 1, 0), theirs=lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO


@dataclasses.dataclass(frozen=True)
class Row:
    """ours: a path, or several that lie in one of their tensors, joined along `axis`.

    start: the config field that says at which {i} our first layer stands. interleaved: several paths alternate entry by
    entry along `axis`, instead of one after the other.
    """

    ours: str | tuple[str, ...]
    theirs: str
    layout: Layout = SAME
    axis: int = 0
    start: str = ""
    interleaved: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


class Piece(NamedTuple):
    """One of their tensors as the part of our parameters it holds: `index` selects within our leading dimensions."""

    name: str
    row: Row
    index: tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor of theirs that has not been read yet."""

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]


Source = Mapping[str, Tensor]

MOST_UNNAMED = 10_000  # tensors that may be missing for each of them to be looked for
MOST_NAMED = 50  # tensors that one message names


def pieces(rows: tuple[Row, ...], spec: Mapping[str, Param], cfg: Any) -> Iterator[Piece]:
    """Every tensor of theirs that holds parameters of `spec` (by path)."""
    for row in rows:
        if row.paths[0] not in spec:
            continue
        shape = spec[row.paths[0]].shape
        start = getattr(cfg, row.start) if row.start else 0
        stacked = [shape[n] for n, mark in enumerate(("{i}", "{e}")) if mark in row.theirs]
        for index in np.ndindex(*stacked):
            marks = {"i": index[0] + start if index else 0, "e": index[1] if len(index) > 1 else 0}
            yield Piece(row.theirs.format(**marks), row, index)


def num_pieces(rows: tuple[Row, ...], spec: Mapping[str, Param]) -> int:
    """How many `pieces` there are, without making them: a config may ask for a billion."""
    shapes = (
        (spec[row.paths[0]].shape, ("{i}" in row.theirs) + ("{e}" in row.theirs))
        for row in rows
        if row.paths[0] in spec
    )
    return sum(math.prod(shape[:lead]) for shape, lead in shapes)


def their_shapes(piece: Piece, spec: Mapping[str, Param]) -> list[tuple[int, ...]]:
    """Shape of each of the row's parameters as it lies in their tensor."""
    return [
        jax.eval_shape(piece.row.layout.theirs, jax.ShapeDtypeStruct(spec[path].shape[len(piece.index) :], "f")).shape
        for path in piece.row.paths
    ]


def joined_shape(shapes: list[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    if len(shapes) == 1:
        return shapes[0]
    shape = list(shapes[0])
    shape[axis] = sum(s[axis] for s in shapes)
    return tuple(shape)


def check(rows: tuple[Row, ...], spec: Mapping[str, Param], cfg: Any, source: Source, ignored: tuple[str, ...]) -> None:
    """Raises one ValueError that names every missing, extra and mis-shaped tensor."""
    asked = num_pieces(rows, spec)
    if asked > len(source) + MOST_UNNAMED:
        raise ValueError(
            f"weights do not fit the config: it asks for {asked} tensors, and the files hold {len(source)}"
        )
    shapes: dict[Row, tuple[int, ...]] = {}  # those of one row are equal
    expected = {}
    for p in pieces(rows, spec, cfg):
        shapes[p.row] = shapes.get(p.row) or joined_shape(their_shapes(p, spec), p.row.axis)
        expected[p.name] = shapes[p.row]
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
    """Parts of one parameter of ours, by what of it they are, assembled from their tensors; each is read once, and none
    of which no part is wanted."""
    shape = spec[path].shape
    parts = {index: np.empty([len(range(n)[s]) for n, s in zip(shape, index, strict=True)], dtype) for index in where}
    for piece in pieces(tuple(r for r in rows if path in r.paths), spec, cfg):
        lead = len(piece.index)
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
    """Where entry `i` of a dimension stands in a part of it, or None."""
    entries = range(size)[part]
    return entries.index(i) if i in entries else None


def read(piece: Piece, spec: Mapping[str, Param], source: Source, path: str) -> np.ndarray:
    """What `piece` holds of the parameter, as it lies in ours."""
    widths = [s[piece.row.axis] if s else 1 for s in their_shapes(piece, spec)]
    array = source[piece.name].read()
    if len(widths) > 1:
        part = piece.row.paths.index(path)
        start = sum(widths[:part])
        whole = range(part, sum(widths), len(widths)) if piece.row.interleaved else range(start, start + widths[part])
        array = np.take(array, whole, axis=piece.row.axis)
    return piece.row.layout.ours(array, spec[path].shape[len(piece.index) :])


def to_theirs(piece: Piece, params: Mapping[str, Any]) -> np.ndarray:
    """A tensor of theirs, from our parameters by path; of a jax.Array only its part is brought to the host."""
    parts = [piece.row.layout.theirs(np.asarray(params[path][piece.index])) for path in piece.row.paths]
    array = parts[0] if len(parts) == 1 else joined(parts, piece.row)
    return np.asarray(array, order="C")


def num_elements(piece: Piece, spec: Mapping[str, Param]) -> int:
    return sum(math.prod(spec[path].shape[len(piece.index) :]) for path in piece.row.paths)


def joined(parts: list[np.ndarray], row: Row) -> np.ndarray:
    """Several of our parameters as the one tensor of theirs."""
    if not row.interleaved:
        return np.concatenate(parts, axis=row.axis)
    assert row.axis == -1, "only the last dimension is ever interleaved"
    return np.stack(parts, axis=-1).reshape(*parts[0].shape[:-1], -1)
