"""The compiled programs of a run, or those that several runs share.

A run compiles its own step. Runs that differ only in some optimizer settings can share one step:
these fields are inputs of the shared step, whereas an ordinary step contains them as constants.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax import config_file
from bigmodel_jax.config import Config, field_of, replaced
from bigmodel_jax.core import params
from bigmodel_jax.training.compiled import Programs, compile_programs
from bigmodel_jax.training.eval_step import make_eval_step

SEED = "train.seed"
KEPT = 4  # the programs of this many configs stay in memory


class OwnPrograms:
    """Compiles each program for one run."""

    def programs(self, config: Config, mesh: Mesh, state: Any, batch: dict, constants: params.Tree) -> Programs:
        """The compiled programs of a training step."""
        return compile_programs(config, mesh, state, batch, constants)

    def eval_step(self, config: Config, mesh: Mesh) -> Callable:
        """The jitted evaluation of one batch."""
        return make_eval_step(config, mesh)


class SharedPrograms(OwnPrograms):
    """Programs for successive runs whose configs differ only in `fields` and `unread`.

    A shared step takes as inputs those of `fields` that `traceable` returns. `unread` are fields
    that no program reads, such as those that select the held-out rows.
    """

    def __init__(self, fields: Sequence[str], unread: Sequence[str] = ()):
        self._fields, self._unread, self._kept, self._traced = tuple(fields), tuple(unread), {}, {}
        self.compiled = 0  # number of programs compiled so far

    def programs(self, config, mesh, state, batch, constants):
        kept, names = self._entry(config, mesh)
        numbers = _numbers(config, names)
        shapes = str(jax.tree.map(jnp.shape, batch)) if self._unread else ""  # rows of other data may be longer
        if shapes not in kept:
            kept[shapes] = compile_programs(config, mesh, state, batch, constants, numbers)
            self.compiled += 1
        found = kept[shapes]
        if not numbers:
            return found
        step, watched = (functools.partial(_with, program, numbers) for program in (found.step, found.watched))
        return found._replace(step=step, watched=watched)

    def eval_step(self, config, mesh):
        kept, _ = self._entry(config, mesh)
        if "eval" not in kept:
            kept["eval"] = make_eval_step(config, mesh)
        return kept["eval"]

    def _entry(self, config: Config, mesh: Mesh) -> tuple[dict, tuple[str, ...]]:
        """The programs of a config, and the fields that its step takes as inputs."""
        blank = json.dumps(_blanked(config_file.to_json(config), self._fields + self._unread))
        if blank not in self._traced:
            self._traced[blank] = traceable(config, self._fields)
        names = self._traced[blank]
        left = {name: field_of(config, name) for name in self._fields if name not in names}
        key = (blank, repr(left), tuple(map(str, mesh.devices.flat)))
        # The oldest entry goes first, because dicts keep the order of insertion.
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = {}
        return self._kept[key], names


def traceable(config: Config, fields: Sequence[str]) -> tuple[str, ...]:
    """The fields that a step can take as inputs: the seed, and optimizer settings.

    A setting can be an input if the optimizer computes with it and no Python code branches on it.
    """
    if config.parallel.strategy == "pmap":
        return ()
    return tuple(name for name in fields if name == SEED or (name.startswith("optim.") and _traces(config, name)))


def _traces(config: Config, name: str) -> bool:
    spec = config.make_model().spec
    shapes = params.of_kind(params.abstract(spec), spec, "trained")

    def update(weights, value):
        optimizer = replaced(config, name, value).optim.make(spec, config.train.steps)
        state = optimizer.tx.init(weights)
        updates, after = optimizer.tx.update(weights, state, weights, grad_norm=jnp.ones(()), value=jnp.ones(()))
        average = optimizer.average and optimizer.average(after, weights, weights)
        return updates, optimizer.rates(state, after), average

    try:
        jax.eval_shape(update, shapes, jax.ShapeDtypeStruct((), jnp.float32))
    except (TypeError, ValueError):  # JAX raises a TypeError where Python code needs a traced value
        return False
    return True


def _with(step: Callable, numbers: dict[str, np.ndarray], state: Any, batch: dict, constants: params.Tree) -> Any:
    return step(state, batch, constants, numbers)


def _numbers(config: Config, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of the fields `names`, which are the step's additional argument."""
    kinds = {name: np.uint32 if name == SEED else np.float32 for name in names}
    return {name: kind(field_of(config, name)) for name, kind in kinds.items()}


def _blanked(node: dict, fields: Sequence[str]) -> dict:
    """A config's JSON without the values of `fields`."""
    for name in fields:
        *path, last = (int(key) if key.isdecimal() else key for key in name.split("."))
        functools.reduce(lambda part, key: part[key], path, node)[last] = None
    return node
