"""Parameters are declared before they exist: a spec is a nested dict whose leaves are `Param`.

Initial values, abstract shapes, shardings, optimizer masks, counts and tables are all computed by
mapping over a spec. A path is the dict keys joined by "/", e.g. "layers/attn/q".
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
    """A named initial distribution.

    name: what tables and golden files show. fn: `fn(key, shape, dtype)` draws an array. spread:
    maps a shape to a number that the standard deviation is proportional to; None if the standard
    deviation is the same for every shape.
    """

    name: str
    fn: Callable = dataclasses.field(compare=False)
    spread: Callable[[tuple[int, ...]], float] | None = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        return self.name


def normal(std: float) -> Init:
    """A normal distribution around 0 with this standard deviation."""
    return Init(f"normal({std:.4g})", jax.nn.initializers.normal(std))


def zeros() -> Init:
    """All entries 0."""
    return Init("zeros", jax.nn.initializers.zeros)


def ones() -> Init:
    """All entries 1."""
    return Init("ones", jax.nn.initializers.ones)


def constant(value: float) -> Init:
    """All entries equal to `value`."""
    return Init(f"constant({value:.4g})", jax.nn.initializers.constant(value))


@dataclasses.dataclass(frozen=True)
class Width:
    """How one parameter compares with the same parameter of a base model, under muP.

    models/mup.py makes these, and optim/widths.py computes learning rates from them.

    - ins: the ratio of input widths, for a matrix between two hidden widths; 1 for all others
    - gradient: the ratio of gradients, if `multiplier` is applied to the weight
    - multiplier: that factor; the stored weight includes it
    """

    ins: float = 1.0
    gradient: float = 1.0
    multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class Param:
    """Every fact about one parameter.

    - shape, dtype: those of the dense array; init: its initial distribution
    - axes: one logical name (or None) per dimension; `sharding.Rules` maps it to a mesh axis
    - decay: whether weight decay applies; None = if it has two dimensions or more, before stacking
    - kind: "trained" parameters have a gradient and optimizer state; a "statistic" (of batch norm)
      is replaced by the forward pass, through `Out.updates`; a "constant" never changes, so steps
      do not return it and checkpoints do not repeat it
    - trainable: False makes the kind "statistic"; a statistic without a new value keeps its value
    - storage: how a constant is kept in memory and on disk (storage.py)
    - width: comparison with a base model, under muP
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
        # The dataclass is frozen, so derived fields are set through object.
        object.__setattr__(self, "trainable", self.kind == "trained")
        if len(self.shape) != len(self.axes):
            raise ValueError(f"Param: shape {self.shape} and axes {self.axes} differ in length")
        self.storage.check(self.shape)
        if self.storage != Dense() and self.kind != "constant":
            raise ValueError(
                f"Param: storage = {self.storage} with kind = {self.kind!r}; only a constant can be stored in this form"
            )
        if self.decay is None:
            object.__setattr__(self, "decay", self.trainable and len(self.shape) >= 2)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def map_spec(fn: Callable, spec: Tree, *trees: Tree) -> Tree:
    """`jax.tree.map` over a spec, with each `Param` as a leaf."""
    return jax.tree.map(fn, spec, *trees, is_leaf=lambda x: isinstance(x, Param))


def paths(tree: Tree) -> dict[str, Any]:
    """A nested dict flattened to {"a/b": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def from_paths(flat: dict[str, Any]) -> Tree:
    """The nested dict of {"a/b": leaf}: the inverse of `paths`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def init(spec: Tree, rng: jax.Array) -> Tree:
    """Initial values of all parameters.

    Each parameter's key depends only on `rng` and its path, so adding a parameter changes no other
    one.
    """

    def one(path: str, p: Param) -> jax.Array:
        # The key is a hash of the path instead of a running index, so a new parameter leaves all
        # other draws as they are.
        key = jax.random.fold_in(rng, zlib.crc32(path.encode()) & 0x7FFFFFFF)
        return p.storage.pack(p.init.fn(key, p.shape, jnp.dtype(p.dtype)))

    return from_paths({path: one(path, p) for path, p in paths(spec).items()})


def abstract(spec: Tree, shardings: Tree | None = None) -> Tree:
    """The tree of `jax.ShapeDtypeStruct` as parameters are stored, with shardings if given."""

    def one(p: Param) -> Any:
        shape = jax.ShapeDtypeStruct(p.shape, p.dtype)
        return shape if p.storage == Dense() else jax.eval_shape(p.storage.pack, shape)

    tree = map_spec(one, spec)
    if shardings is None:
        return tree
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def empty(spec: Tree) -> Tree:
    """Zeros for every leaf of a spec, such as a decode cache before its first token."""
    return map_spec(lambda p: jnp.zeros(p.shape, p.dtype), spec)


def stack(spec: Tree, n: int, axis: str | None = "layers") -> Tree:
    """The spec of `n` layers as one tree with a leading dimension.

    Each layer is drawn independently, as if it were not stacked. axis: logical name of that
    dimension.
    """

    def one(p: Param) -> Param:
        # The distribution of one layer must not see the leading dimension of layers.
        spread = p.init.spread and (lambda shape: p.init.spread(shape[1:]))
        init = Init(p.init.name, each(p.init.fn), spread)
        return dataclasses.replace(p, shape=(n, *p.shape), axes=(axis, *p.axes), init=init, decay=p.decay)

    return map_spec(one, spec)


def each(fn: Callable) -> Callable:
    """The initial distribution for one more leading dimension.

    Each entry is drawn by `fn` independently.
    """

    def draw(key, shape, dtype):
        # vmap over keys gives each layer the draw that it would have alone.
        return jax.vmap(lambda k: fn(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

    return draw


def check_sizes(spec: Tree) -> None:
    """Raises ValueError, one line, for a parameter with a dimension of size 0.

    This happens if, for example, a width is smaller than the number of heads.
    """
    for path, param in paths(spec).items():
        if not all(size > 0 for size in param.shape):
            raise ValueError(f"model: parameter {path} would have shape {param.shape}; every size must be 1 or more")


def of_kind(tree: Tree, spec: Tree, kind: Kind) -> Tree:
    """The leaves of one kind from a tree shaped like `spec`; empty branches are dropped."""
    specs = paths(spec)
    return from_paths({path: leaf for path, leaf in paths(tree).items() if specs[path].kind == kind})


def constants(spec: Tree, **facts: Any) -> Tree:
    """The same spec with every parameter a constant, such as a teacher's; facts: other fields to
    change."""
    return map_spec(lambda p: dataclasses.replace(p, kind="constant", decay=False, **facts), spec)


def partition(tree: Tree, spec: Tree) -> tuple[Tree, Tree]:
    """Splits a tree shaped like `spec` into (trained, all others); empty branches are dropped."""
    flat, specs = paths(tree), paths(spec)
    others = {path: leaf for path, leaf in flat.items() if not specs[path].trainable}
    return of_kind(tree, spec, "trained"), from_paths(others)


def merge(*trees: Tree) -> Tree:
    """One tree with the leaves of all trees: the inverse of `partition`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= paths(tree)
    return from_paths(flat)


def count(spec: Tree, trainable: bool | None = None) -> int:
    """The number of parameters.

    trainable: True counts only trained parameters, False only the others.
    """
    return sum(p.size for p in paths(spec).values() if trainable is None or p.trainable == trainable)


def table(spec: Tree) -> str:
    """One aligned line per parameter: path, shape, axes, init, dtype, decay, kind; used by golden
    files."""
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
