"""Name tables on a family of two parameters: what is read, what is ignored, and what only looks
like it."""

from types import SimpleNamespace

import numpy as np
import pytest

from bigmodel_jax.core.params import Param, zeros
from bigmodel_jax.pretrained import names
from bigmodel_jax.pretrained.names import Row, Tensor

SPEC = {
    "layers/q": Param((2, 3, 2, 4), (None,) * 4, zeros()),
    "layers/gate": Param((2, 3, 5), (None,) * 3, zeros()),
    "layers/up": Param((2, 3, 5), (None,) * 3, zeros()),
    "experts": Param((2, 3, 4, 6), (None,) * 4, zeros()),
}
ROWS = (
    Row("layers/q", "h.{i}.q.weight", names.linear(), start="first"),
    Row(("layers/gate", "layers/up"), "h.{i}.both.weight", names.linear(), start="first"),
    Row("experts", "e.{i}.{e}.w", names.kernel()),
    Row("absent", "head.weight"),
)
CFG = SimpleNamespace(first=1)
IGNORED = (r".*\.inv_freq", r"h\.9\..*")


def tensors() -> dict[str, np.ndarray]:
    shapes = {f"h.{i}.q.weight": (8, 3) for i in (1, 2)} | {f"h.{i}.both.weight": (10, 3) for i in (1, 2)}
    shapes |= {f"e.{i}.{e}.w": (4, 6) for i in (0, 1) for e in (0, 1, 2)}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def source(arrays):
    return {name: Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}


def whole(path: str, arrays) -> np.ndarray:
    index = tuple(slice(0, n) for n in SPEC[path].shape)
    return names.to_ours(ROWS, SPEC, CFG, source(arrays), path, [index], np.float32)[index]


def test_every_entry_comes_from_its_place():
    """Theirs are (out, in), ours (in, heads, out / heads). Layers count from `first`, and gate's
    rows stand before up's."""
    theirs = tensors()
    names.check(ROWS, SPEC, CFG, source(theirs), IGNORED)
    q, gate, up, experts = (whole(path, theirs) for path in SPEC)
    for layer, dim, head, width in np.ndindex(2, 3, 2, 4):
        assert q[layer, dim, head, width] == theirs[f"h.{layer + 1}.q.weight"][head * 4 + width, dim]
    for layer, dim, column in np.ndindex(2, 3, 5):
        assert gate[layer, dim, column] == theirs[f"h.{layer + 1}.both.weight"][column, dim]
        assert up[layer, dim, column] == theirs[f"h.{layer + 1}.both.weight"][5 + column, dim]
    for layer, expert in np.ndindex(2, 3):
        np.testing.assert_array_equal(experts[layer, expert], theirs[f"e.{layer}.{expert}.w"])


def test_the_way_out_is_the_way_in_backwards():
    theirs = tensors()
    ours = {path: whole(path, theirs) for path in SPEC}
    back = {piece.name: names.to_theirs(piece, ours) for piece in names.pieces(ROWS, SPEC, CFG)}
    assert back.keys() == theirs.keys()
    for name, x in theirs.items():
        np.testing.assert_array_equal(back[name], x)


def test_entries_that_alternate():
    row = Row(("layers/gate", "layers/up"), "h.{i}.both", names.kernel(), axis=-1, interleaved=True)
    array = np.arange(2 * 3 * 10, dtype=np.float32).reshape(2, 3, 10)
    theirs = source({f"h.{i}.both": array[i] for i in (0, 1)})
    for n, path in enumerate(row.paths):
        index = tuple(slice(0, size) for size in SPEC[path].shape)
        found = names.to_ours((row,), SPEC, CFG, theirs, path, [index], np.float32)[index]
        np.testing.assert_array_equal(found, array[..., n::2])


@pytest.mark.parametrize("name", ["rope.inv_freq", "h.1.rope.inv_freq", "h.9.q.weight", "h.9."])
def test_what_is_ignored_may_be_there(name):
    names.check(ROWS, SPEC, CFG, source(tensors() | {name: np.zeros(1)}), IGNORED)


@pytest.mark.parametrize(
    "name", ["rope.inv_freq_extra", "inv_freq", "h.90.q.weight", "xh.9.q", "h.9", "H.9.q", "head.weight"]
)
def test_what_only_looks_like_it_is_refused(name):
    with pytest.raises(ValueError, match="has no place in this model") as error:
        names.check(ROWS, SPEC, CFG, source(tensors() | {name: np.zeros(1)}), IGNORED)
    assert name in str(error.value)


def test_what_is_missing_or_of_another_shape_is_named():
    theirs = tensors()
    del theirs["h.2.q.weight"]
    theirs["e.1.2.w"] = theirs["e.1.2.w"].T
    with pytest.raises(ValueError, match="h.2.q.weight is missing") as error:
        names.check(ROWS, SPEC, CFG, source(theirs), IGNORED)
    assert "e.1.2.w has shape (6, 4), expected (4, 6)" in str(error.value)
    assert str(error.value).count(";") == 1
