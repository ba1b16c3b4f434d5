"""Wraps a model so that it reads its weights through adapters.

A `Place` says what one weight gets from an adapter. The model's functions then receive a parameter
tree in which each adapted weight is a node `Adapted` (nn/lora.py).
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Init, Param, Tree
from bigmodel_jax.models.base import Model
from bigmodel_jax.nn.lora import BRANCH, ROWS, Adapted, Low, Unmixed

STACKS = ("layers", "experts")  # axes that count separate weights, each with an adapter of its own


@dataclasses.dataclass(frozen=True)
class Place:
    """What one weight gets from an adapter: the trained parts and how a product reads them.

    spec: the trained parts by their names in nn/lora.py `Low`. num_in, turned: as in `Adapted`.
    scale: the factor of the low-rank product. rate: the dropout rate of the product's input.
    layers: the number of layers stacked in the weight; 0: the weight is not stacked.
    start: the first row of the part "rows".
    """

    spec: dict[str, Param]
    num_in: int = 1
    turned: bool = False
    scale: float = 1.0
    rate: float = 0.0
    layers: int = 0
    start: int = 0

    def low(self, path: str, parts: dict, rng: jax.Array | None, on: Any = None) -> Low:
        """The `Low` of this place.

        parts: its arrays by name. rng: the call's key, None outside training. on: as in `Low`, for
        each layer of the arrays. Raises Unmixed for weights trained in full, which rows share.
        """
        if on is not None and "whole" in parts:
            raise Unmixed(f"{path} is trained in full")
        key = None
        if self.rate and rng is not None:
            key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            key = jax.random.split(key, self.layers) if self.layers else key
        return Low(**parts, key=key, on=on, scale=self.scale, rate=self.rate, start=self.start)


# ------------------------------------------------------------------------------------ which weights


class Dims(NamedTuple):
    """Sizes of some dimensions of a weight, and their logical axes."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


class Matrix(NamedTuple):
    """A weight seen as a linear map from its inner to its outer dimensions.

    lead: the leading dimensions, which count separate maps (layers, experts). table: the weight is
    an embedding table, whose input is a token. turned: the weight's outer dimensions come before
    its inner ones, as in the table of a head.
    """

    lead: Dims
    inner: Dims
    outer: Dims
    table: bool = False
    turned: bool = False

    def param(self, shape: tuple, axes: tuple, init: Init, **facts) -> Param:
        """A parameter of `shape` for each entry along `lead`, each drawn separately."""
        for _ in self.lead.shape:
            init = Init(init.name, params.each(init.fn))
        return Param((*self.lead.shape, *shape), (*self.lead.axes, *axes), init, **facts)


def is_table(p: Param) -> bool:
    """Whether a parameter is an embedding table or the table of a head: (vocab, embed)."""
    return len(p.shape) == 2 and p.axes[0] == "vocab"


def matrix(path: str, p: Param) -> Matrix | None:
    """Returns how a product reads the weight at `path`; None for a bias or scale, of any rank.

    A table maps tokens to rows; a table below "head/" maps features to its rows instead. In all
    other weights, the logical axes decide: the only input dimension of (embed, heads, head_dim) is
    its first, and the only output dimension of (heads, head_dim, embed) is its last.
    """
    lead = next((n for n, axis in enumerate(p.axes) if axis not in STACKS), len(p.axes))
    shape, axes = p.shape[lead:], p.axes[lead:]
    if not p.decay or len(shape) < 2:
        return None
    if not lead and len(shape) > 2 and axes[0] is None and axes[1] is not None:  # a stack, axis unnamed
        lead, shape, axes = 1, shape[1:], axes[1:]
    first = 1 if len(shape) == 2 or axes[0] == "embed" else len(shape) - 1
    parts = (Dims(p.shape[:lead], p.axes[:lead]), Dims(shape[:first], axes[:first]), Dims(shape[first:], axes[first:]))
    if is_table(p):
        turned = path.startswith("head/")
        return Matrix(parts[0], *(parts[:0:-1] if turned else parts[1:]), table=not turned, turned=turned)
    return Matrix(*parts)


# ---------------------------------------------------------------------------------------- the model


def adapted(model: Model, spec: Tree, places: dict[str, dict[str, Place]]) -> Model:
    """The model with the parameters of `spec`, read through adapters.

    places: for each adapter's name, {path of a weight: what the weight gets}.
    """
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
    """The base's own initial values, stored as `spec` says, and the adapters' initial values."""
    declared, own = params.paths(spec), params.init({BRANCH: spec[BRANCH]}, rng)

    def stored(path: str, x: jax.Array) -> Any:
        p = declared[path]
        return p.storage.pack(x.astype(p.dtype)) if p.kind == "constant" else x

    return params.from_paths({path: stored(path, x) for path, x in params.paths(init(rng)).items()}) | own


def weave(places: dict[str, dict[str, Place]], tables: frozenset[str], tree: Tree, rng: jax.Array | None) -> Tree:
    """The base's parameters with a node `Adapted` for each weight that has an adapter in the tree.

    Tables get a node even without adapters, because no gradient is computed for the weight of a
    node. A tree without adapters is returned unchanged.
    """
    on = tree.get(BRANCH)
    if on is None:
        return tree
    flat = params.paths({name: part for name, part in tree.items() if name not in (BRANCH, ROWS)})
    parts = {name: params.paths(part) for name, part in on.items()}
    nodes = functools.partial(_nodes, places, tables, parts, rng, tree.get(ROWS, {}))
    apart = {
        path: tuple(_of_layer(nodes, path, layer, i) for i, layer in enumerate(layers))
        for path, layers in flat.items()
        if isinstance(layers, tuple)  # unstacked layers: stack.py `apart`
    }
    return params.from_paths(flat | nodes(flat) | apart)


def _of_layer(nodes: Callable, stack: str, layer: Tree, i: int) -> Tree:
    """One layer of an unstacked stack, with its nodes; i: the layer's index."""
    flat = {f"{stack}/{path}": x for path, x in params.paths(layer).items()}
    made = flat | nodes(flat, lambda x: x[i])
    return params.from_paths({path.removeprefix(f"{stack}/"): x for path, x in made.items()})


def _nodes(places, tables, parts, rng, rows, flat: dict[str, Any], of: Callable = lambda x: x) -> dict[str, Adapted]:
    """A node for each weight of `flat` that an adapter changes.

    rows: {adapter's name: its `Low.on`}. of: takes from an adapter's part the piece that belongs to
    `flat`, such as one layer.
    """
    nodes = {path: Adapted(flat[path]) for path in tables if path in flat}
    for name, of_weights in places.items():
        for path, place in of_weights.items():
            if name not in parts or path not in flat:
                continue
            mine = {part: of(parts[name][f"{path}/{part}"]) for part in place.spec}
            on = rows.get(name)
            if on is not None and place.layers:  # a loop over layers takes one entry for each
                on = of(jnp.broadcast_to(on, (place.layers, *on.shape)))
            low = place.low(f"{BRANCH}/{name}/{path}", mine, rng, on)
            node = nodes.get(path, Adapted(flat[path]))
            turned = place.turned or node.turned
            nodes[path] = dataclasses.replace(node, low=(*node.low, low), num_in=place.num_in, turned=turned)
    return nodes


def merge(model: Model, tree: Tree) -> Tree:
    """The weights of a model without adapters that computes what `tree` computes with its own."""
    read = model.parts.read if model.parts else model.apply.args[0]
    woven = read(tree, None)
    return jax.tree.map(
        lambda x: x.dense() if isinstance(x, Adapted) else x, woven, is_leaf=lambda x: isinstance(x, Adapted)
    )
