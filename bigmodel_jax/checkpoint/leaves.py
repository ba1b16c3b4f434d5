"""Reads single leaves of one save by their paths, and their descriptions."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from bigmodel_jax.checkpoint import arrays, manifest, store
from bigmodel_jax.checkpoint.digest import digests
from bigmodel_jax.checkpoint.manifest import Damaged
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import mirror, sharding


class Leaf(NamedTuple):
    """The description of one array in a save; digest: 32 bits (digest.py)."""

    shape: tuple[int, ...]
    dtype: str
    digest: int


def newest(directory: Path) -> int:
    """The newest save whose description can be read. Raises ValueError if there is none."""
    saves = store.open_store(directory, CheckpointConfig())
    for step in reversed(store.steps(saves)):
        if _described(saves.directory / str(step)) is not None:
            return step
    raise ValueError(f"checkpoint: no undamaged checkpoint in {directory}")


def describe(directory: Path, step: int) -> dict[str, Leaf]:
    """{path: description} of every leaf of a save, without reading any array. A path is, for
    example, "params/layers/attn/q".

    Raises FileNotFoundError if there is no such save, and ValueError, one line, if it is damaged.
    """
    folder = mirror.origin(directory) / str(step)
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint: no step {step} in {directory}")
    return _whole(folder, lambda: _describe(folder))


def read(directory: Path, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The leaves of `wanted`, verified by their digests.

    wanted: {path: shape with sharding}. Raises ValueError, one line, if a leaf is damaged or
    missing.
    """
    folder = mirror.origin(directory) / str(step)
    known = _whole(folder, lambda: _describe(folder))
    if lacking := [path for path in wanted if path not in known]:
        raise ValueError(f"checkpoint: {folder} lacks {manifest.few(lacking)}")
    # Orbax restores nested trees, so the flat paths are nested again.
    tree = traverse_util.unflatten_dict({path: arrays.placed(x) for path, x in wanted.items()}, sep="/")
    found = traverse_util.flatten_dict(_whole(folder, lambda: arrays.read(folder, tree, some=True)), sep="/")
    # Digests of what was read are compared with those that were saved.
    here = sharding.to_host(digests([found[path] for path in wanted]))
    if bad := [path for path, number in zip(wanted, here, strict=True) if number != known[path].digest]:
        raise ValueError(f"checkpoint: {folder} is damaged: wrong digest of {manifest.few(bad)}")
    return {path: found[path] for path in wanted}


def _whole[T](folder: Path, make: Callable[[], T]) -> T:
    try:
        return arrays.together(make)
    except Damaged as error:
        raise ValueError(f"checkpoint: {folder} is damaged: {error}") from None


def _described(folder: Path) -> dict[str, Leaf] | None:
    try:
        return arrays.together(lambda: _describe(folder))
    except Damaged:
        return None


def _describe(folder: Path) -> dict[str, Leaf]:
    saved = manifest.read(folder)["leaves"]
    numbers = arrays.read(folder, {"digest": np.zeros(len(saved), np.uint32)})["digest"]
    return {path: _leaf(text, number) for (path, text), number in zip(saved.items(), numbers, strict=True)}


def _leaf(text: str, number: int) -> Leaf:
    """The leaf that a text of `manifest.describe` describes."""
    dtype, _, dims = text.rstrip("]").partition("[")
    return Leaf(tuple(map(int, filter(None, dims.split(",")))), dtype, int(number))
