"""Taps: intermediate values of layers, read out by name and layer.

`tap` is the identity, and it costs nothing unless a caller reads taps. Its names are separate from
those of remat (nn/stack.py, POLICIES). "residual" is a layer's output, "attention" the output of
attention after its projection, "mlp" that of a feed-forward layer, and "units" its hidden units
before the activation. "entropy" and "weights" are functions, called only if they are asked for:
they give attention's entropy, and its weights (B, H, T, S) float32 by the plain definition.
"""

import contextvars
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel_jax.core.spelling import nearest


@dataclasses.dataclass
class Harvest:
    """The state of one reading.

    names: the taps that are asked for. read: maps a tap's name and value to what is kept. seen: the
    names of all taps that ran. found: the values by name, (L, ...). layer: the values of the layer
    being traced.
    """

    names: tuple[str, ...]
    read: Callable[[str, Any], Any] = lambda name, x: x() if callable(x) else x
    seen: set[str] = dataclasses.field(default_factory=set)
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    layer: dict[str, Any] | None = None


# `tap` stands deep inside a model, where no argument of the caller arrives. A context variable is
# separate in each thread.
_asked: contextvars.ContextVar[Harvest | None] = contextvars.ContextVar("asked", default=None)


def asked() -> bool:
    """Whether any taps are being read."""
    return _asked.get() is not None


def tap(name: str, x: Any) -> Any:
    """x itself. A layer's second tap of one name is "name/1", its third "name/2"."""
    if (harvest := _asked.get()) and harvest.layer is not None:
        harvest.seen.add(name)
        if name in harvest.names:
            num = sum(key.partition("/")[0] == name for key in harvest.layer)
            harvest.layer[f"{name}/{num}" if num else name] = harvest.read(name, x)
    return x


def tapped(fn: Callable, *names: str) -> Callable:
    """`fn`, which then returns (its result, {name: (L, ...)}).

    The dict holds the values of these taps in each layer. Layers of several stacks follow one
    another in the order in which they run. Apply `jax.jit` to the function that is returned, and
    not to `fn`, whose compiled program would give no taps. Raises ValueError for a name that no
    layer taps.
    """

    def run(*args, **kwargs):
        harvest = Harvest(names)
        out = _gathered(harvest, fn, *args, **kwargs)
        if missing := [name for name in names if name not in harvest.seen]:
            known = ", ".join(sorted(harvest.seen)) or "none"
            raise ValueError(f"taps: no layer has {missing[0]!r}; allowed: {known}{nearest(missing[0], harvest.seen)}")
        return out, harvest.found

    return run


def read(fn: Callable, keep: Callable[[str, Any], Any], names: tuple[str, ...]) -> Callable:
    """As `tapped`, but only `keep(name, value)` leaves a layer, and an unknown name is no error."""

    def run(*args, **kwargs):
        harvest = Harvest(names, read=keep)
        return _gathered(harvest, fn, *args, **kwargs), harvest.found

    return run


def _gathered(harvest: Harvest, fn: Callable, *args, **kwargs) -> Any:
    token = _asked.set(harvest)
    try:
        return fn(*args, **kwargs)
    finally:
        _asked.reset(token)


def watch(block: Callable) -> tuple[Callable, Callable]:
    """Returns (the block that also returns its taps, the function that removes them).

    Code that runs layers calls `watch`. The second function takes the taps out of the stacked
    results and stores them.
    """
    harvest = _asked.get()
    if harvest is None:
        return block, lambda out: out

    def watched(*args):
        outer, harvest.layer = harvest.layer, {}
        try:
            x, ys = block(*args)
            # A scan traces the block once for all layers. So taps must leave it as results: a value
            # stored outside would be a tracer that is no longer valid.
            return tap("residual", x), (ys, harvest.layer)
        finally:
            harvest.layer = outer

    def take(out):
        x, (ys, found) = out
        into = harvest.found if harvest.layer is None else harvest.layer
        for name, value in found.items():
            into[name] = _after(name, into[name], value) if name in into else value
        return x, ys

    return watched, take


def _after(name: str, before: Any, value: Any) -> Any:
    """The values of one stack of layers followed by those of the next one."""
    if [a.shape[1:] for a in jax.tree.leaves(before)] != [a.shape[1:] for a in jax.tree.leaves(value)]:
        raise ValueError(f"taps: {name!r} has different shapes in two stacks of layers; give one of them another name")
    return jax.tree.map(lambda *stacks: jnp.concatenate(stacks), before, value)
