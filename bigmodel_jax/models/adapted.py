"""What each weight of a model gets from an adapter, and the model's functions around it.

A spec says how a product reads a weight; a tree of parameters becomes one with nodes `Adapted` (nn/lora.py).
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, Tree
from bigmodel_jax.models.base import Model
from bigmodel_jax.nn.lora import BRANCH, Adapted, Low

STACKS = ("layers", "experts")  # dimensions along which each weight is one of several


@dataclasses.dataclass(frozen=True)
class Place:
    """What one weight gets: the parts that are trained (nn/lora.py `Low`), and how they are read.

    layers: of how many layers the weight is one, 0 = it stands alone.
    """

    spec: dict[str, Param]
    num_in: int = 1
    turned: bool = False
    scale: float = 1.0
    rate: float = 0.0
    layers: int = 0
    start: int = 0

    def low(self, path: str, parts: dict, rng: jax.Array | None) -> Low:
        """rng: of the call, None outside training."""
        key = None
        if self.rate and rng is not None:
            key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            key = jax.random.split(key, self.layers) if self.layers else key
        return Low(**parts, key=key, scale=self.scale, rate=self.rate, start=self.start)


# ------------------------------------------------------------------------------------------------ which weights


class Dims(NamedTuple):
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


class Matrix(NamedTuple):
    """A weight seen as a map from its inner dimensions to its outer ones, for each entry along `lead`.

    table: its input are tokens. turned: its outer dimensions stand first.
    """

    lead: Dims
    inner: Dims
    outer: Dims
    table: bool = False
    turned: bool = False

    def param(self, shape: tuple, axes: tuple, init: Init, **facts) -> Param:
        """A parameter for each entry along `lead`."""
        for _ in self.lead.shape:
            init = Init(init.name, params.each(init.fn))
        return Param((*self.lead.shape, *shape), (*self.lead.axes, *axes), init, **facts)


def is_table(p: Param) -> bool:
    return len(p.shape) == 2 and p.axes[0] == "vocab"


def matrix(path: str, p: Param) -> Matrix | None:
    """How a product reads the weight; None for a vector, however its dimensions are written.

    A table is looked up by its rows, but under head/, where these are the outputs. (embed, heads, head_dim) goes out of its
    first dimension, (heads, head_dim, embed) into its last one.
    """
    lead = next((n for n, axis in enumerate(p.axes) if axis not in STACKS), len(p.axes))
    shape, axes = p.shape[lead:], p.axes[lead:]
    if not p.decay or len(shape) < 2:
        return None
    if not lead and len(shape) > 2 and axes[0] is None and axes[1] is not None:  # a stack without a name
        lead, shape, axes = 1, shape[1:], axes[1:]
    first = 1 if len(shape) == 2 or axes[0] == "embed" else len(shape) - 1
    parts = (Dims(p.shape[:lead], p.axes[:lead]), Dims(shape[:first], axes[:first]), Dims(shape[first:], axes[first:]))
    if is_table(p):
        turned = path.startswith("head/")
        return Matrix(parts[0], *(parts[:0:-1] if turned else parts[1:]), table=not turned, turned=turned)
    return Matrix(*parts)


# ------------------------------------------------------------------------------------------------ the model


def adapted(model: Model, spec: Tree, places: dict[str, dict[str, Place]]) -> Model:
    """The model with parameters of `spec`; places: of each adapter, by its name."""
    tables = frozenset(path for path, p in params.paths(model.spec).items() if is_table(p))
    read = functools.partial(weave, places, tables)
    if model.parts:
        apply = dataclasses.replace(model.parts, read=functools.partial(_read_all, read, model.parts.read))
    else:
        apply = functools.partial(_apply, read, model.apply)
    return model._replace(spec=spec, apply=apply, init=model.init and functools.partial(_init, model.init, spec))


def _read_all(read: Callable, before: Callable, tree: Tree, rng: jax.Array | None) -> Tree:
    return before(read(tree, rng), rng)


def _apply(read: Callable, apply: Callable, tree: Tree, batch: dict, *, rng=None, train=False, cache=None):
    return apply(read(tree, rng if train else None), batch, rng=rng, train=train, cache=cache)


def _init(init: Callable, spec: Tree, rng: jax.Array) -> Tree:
    """The base's own initial values, as `spec` stores them, and those of the adapters."""
    declared, own = params.paths(spec), params.init({BRANCH: spec[BRANCH]}, rng)

    def stored(path: str, x: jax.Array) -> Any:
        p = declared[path]
        return p.storage.pack(x.astype(p.dtype)) if p.kind == "constant" else x

    return params.from_paths({path: stored(path, x) for path, x in params.paths(init(rng)).items()}) | own


def weave(places: dict[str, dict[str, Place]], tables: frozenset[str], tree: Tree, rng: jax.Array | None) -> Tree:
    """The base's tree with a node `Adapted` for each weight that has an adapter in the tree, and for each table, of which
    no gradient is then computed. A tree without adapters is the base's own."""
    on = tree.get(BRANCH)
    if on is None:
        return tree
    flat = params.paths({name: part for name, part in tree.items() if name != BRANCH})
    parts = {name: params.paths(part) for name, part in on.items()}
    nodes = functools.partial(_nodes, places, tables, parts, rng)
    apart = {
        path: tuple(_of_layer(nodes, path, layer, i) for i, layer in enumerate(layers))
        for path, layers in flat.items()
        if isinstance(layers, tuple)  # stack.py `apart`
    }
    return params.from_paths(flat | nodes(flat) | apart)


def _of_layer(nodes: Callable, stack: str, layer: Tree, i: int) -> Tree:
    """One layer of a stack whose layers lie apart."""
    flat = {f"{stack}/{path}": x for path, x in params.paths(layer).items()}
    made = flat | nodes(flat, lambda x: x[i])
    return params.from_paths({path.removeprefix(f"{stack}/"): x for path, x in made.items()})


def _nodes(places, tables, parts, rng, flat: dict[str, Any], of: Callable = lambda x: x) -> dict[str, Adapted]:
    """A node for each weight of `flat` that has one; of(part) of an adapter: what belongs to these weights."""
    nodes = {path: Adapted(flat[path]) for path in tables if path in flat}
    for name, of_weights in places.items():
        for path, place in of_weights.items():
            if name not in parts or path not in flat:
                continue
            mine = {part: of(parts[name][f"{path}/{part}"]) for part in place.spec}
            low = place.low(f"{BRANCH}/{name}/{path}", mine, rng)
            node = nodes.get(path, Adapted(flat[path]))
            turned = place.turned or node.turned
            nodes[path] = dataclasses.replace(node, low=(*node.low, low), num_in=place.num_in, turned=turned)
    return nodes


def merge(model: Model, tree: Tree) -> Tree:
    """One set of weights, of the model without adapters, whose outputs are those of the base with the adapters in `tree`."""
    read = model.parts.read if model.parts else model.apply.args[0]
    woven = read(tree, None)
    return jax.tree.map(
        lambda x: x.dense() if isinstance(x, Adapted) else x, woven, is_leaf=lambda x: isinstance(x, Adapted)
    )
