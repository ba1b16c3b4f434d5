"""Parameters declared before they exist: a spec is a nested dict whose leaves are `Param`.

Initial values, abstract shapes, shardings, optimizer masks, counts and tables are all maps of that one tree.
Paths are the dict keys joined by "/", e.g. "layers/attn/q".
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util

from bigmodel_jax.core.storage import Dense, Storage

Tree = Any  # a nested dict
Kind = Literal["trained", "statistic", "constant"]


@dataclasses.dataclass(frozen=True)
class Init:
    """A named initial distribution: `fn(key, shape, dtype)`; the name is what tables and golden files show.

    spread: shape -> a number that the standard deviation is proportional to; None: it is the same for every shape.
    """

    name: str
    fn: Callable = dataclasses.field(compare=False)
    spread: Callable[[tuple[int, ...]], float] | None = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        return self.name


def normal(std: float) -> Init:
    return Init(f"normal({std:.4g})", jax.nn.initializers.normal(std))


def zeros() -> Init:
    return Init("zeros", jax.nn.initializers.zeros)


def ones() -> Init:
    return Init("ones", jax.nn.initializers.ones)


def constant(value: float) -> Init:
    """Every entry the same number."""
    return Init(f"constant({value:.4g})", jax.nn.initializers.constant(value))


@dataclasses.dataclass(frozen=True)
class Width:
    """How one parameter's sizes compare with those of a base model (models/mup.py); optim/widths.py makes rates of it.

    ins: how many times wider the input of a matrix between two widths is; 1 for all else. gradient: how many times larger
    the gradient is, where `multiplier` stands before the weight. multiplier: that factor, which the weight holds itself.
    """

    ins: float = 1.0
    gradient: float = 1.0
    multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class Param:
    """Every fact about one parameter.

    axes: one logical name (or None) per dimension, turned into a mesh axis by `sharding.Rules`.
    decay: whether weight decay applies; by default to matrices and above, decided before layers are stacked.
    kind: "trained" has a gradient, an optimizer and an average; the forward pass rewrites a "statistic" (batch norm), in
    `Out.updates`; a "constant" never changes: no step returns it, and no checkpoint repeats it.
    storage: how a constant is kept in memory and on disk (storage.py).
    trainable: False is another word for a statistic; one that gets no new value keeps the value that it has.
    width: against a base model, under μP.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init
    dtype: str = "float32"
    decay: bool | None = None
    trainable: bool = True
    kind: Kind = "trained"
    storage: Storage = Dense()
    width: Width = Width()

    def __post_init__(self):
        if self.kind == "trained" and not self.trainable:
            object.__setattr__(self, "kind", "statistic")
        object.__setattr__(self, "trainable", self.kind == "trained")
        if len(self.shape) != len(self.axes):
            raise ValueError(f"Param: shape {self.shape} and axes {self.axes} differ in length")
        self.storage.check(self.shape)
        if self.storage != Dense() and self.kind != "constant":
            raise ValueError(f"Param: storage = {self.storage} with kind = {self.kind!r}; only a constant is stored so")
        if self.decay is None:
            object.__setattr__(self, "decay", self.trainable and len(self.shape) >= 2)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def map_spec(fn: Callable, spec: Tree, *trees: Tree) -> Tree:
    """`jax.tree.map` with `Param` as the leaf."""
    return jax.tree.map(fn, spec, *trees, is_leaf=lambda x: isinstance(x, Param))


def paths(tree: Tree) -> dict[str, Any]:
    """A nested dict flattened to {"a/b": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def from_paths(flat: dict[str, Any]) -> Tree:
    return traverse_util.unflatten_dict(flat, sep="/")


def init(spec: Tree, rng: jax.Array) -> Tree:
    """Initial values; a parameter's key depends on `rng` and its path alone, so that adding one moves no other."""

    def one(path: str, p: Param) -> jax.Array:
        key = jax.random.fold_in(rng, zlib.crc32(path.encode()) & 0x7FFFFFFF)
        return p.storage.pack(p.init.fn(key, p.shape, jnp.dtype(p.dtype)))

    return from_paths({path: one(path, p) for path, p in paths(spec).items()})


def abstract(spec: Tree, shardings: Tree | None = None) -> Tree:
    """The tree as `jax.ShapeDtypeStruct`, as it is stored, with shardings where given."""

    def one(p: Param) -> Any:
        shape = jax.ShapeDtypeStruct(p.shape, p.dtype)
        return shape if p.storage == Dense() else jax.eval_shape(p.storage.pack, shape)

    tree = map_spec(one, spec)
    if shardings is None:
        return tree
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def empty(spec: Tree) -> Tree:
    """Zeros for every leaf: a decode cache before its first token."""
    return map_spec(lambda p: jnp.zeros(p.shape, p.dtype), spec)


def stack(spec: Tree, n: int, axis: str | None = "layers") -> Tree:
    """`n` layers of `spec` as one tree with a leading dimension; each layer keeps its own initial draw."""

    def one(p: Param) -> Param:
        spread = p.init.spread and (lambda shape: p.init.spread(shape[1:]))
        init = Init(p.init.name, each(p.init.fn), spread)
        return dataclasses.replace(p, shape=(n, *p.shape), axes=(axis, *p.axes), init=init, decay=p.decay)

    return map_spec(one, spec)


def each(fn: Callable) -> Callable:
    """The initial distribution of arrays with one more leading dimension, each entry a draw of its own from `fn`."""

    def draw(key, shape, dtype):
        return jax.vmap(lambda k: fn(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return draw


def check_sizes(spec: Tree) -> None:
    """ValueError, one line, for a parameter without elements: a width smaller than the number of heads, say."""
    for path, param in paths(spec).items():
        if not all(size > 0 for size in param.shape):
            raise ValueError(f"model: parameter {path} would have shape {param.shape}; every size must be 1 or more")


def of_kind(tree: Tree, spec: Tree, kind: Kind) -> Tree:
    """The leaves of one kind of a tree shaped like `spec`; branches left empty are dropped."""
    specs = paths(spec)
    return from_paths({path: leaf for path, leaf in paths(tree).items() if specs[path].kind == kind})


def constants(spec: Tree, **facts: Any) -> Tree:
    """The spec of the same parameters as constants, such as those of a teacher; facts: what else differs for all of them."""
    return map_spec(lambda p: dataclasses.replace(p, kind="constant", decay=False, **facts), spec)


def partition(tree: Tree, spec: Tree) -> tuple[Tree, Tree]:
    """Splits a tree shaped like `spec` into (trained, all others); branches left empty are dropped."""
    flat, specs = paths(tree), paths(spec)
    others = {path: leaf for path, leaf in flat.items() if not specs[path].trainable}
    return of_kind(tree, spec, "trained"), from_paths(others)


def merge(*trees: Tree) -> Tree:
    """One tree of the leaves of all: the inverse of `partition`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= paths(tree)
    return from_paths(flat)


def count(spec: Tree, trainable: bool | None = None) -> int:
    """Number of parameters, of one kind if `trainable` is given."""
    return sum(p.size for p in paths(spec).values() if trainable is None or p.trainable == trainable)


def table(spec: Tree) -> str:
    """One aligned line per parameter: path, shape, axes, init, dtype, decay, kind. The form of the golden files."""
    rows = [
        (
            path,
            "x".join(map(str, p.shape)) or "scalar",
            ",".join(a or "-" for a in p.axes) or "-",
            repr(p.init),
            p.dtype if p.storage == Dense() else str(p.storage),
            "decay" if p.decay and p.trainable else "no decay",
            "" if p.trainable else p.kind,
        )
        for path, p in sorted(paths(spec).items())
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
