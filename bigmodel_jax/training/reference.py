"""Arrays that an objective computes once for every row, before a run's first step.

These are a reference model's log-probabilities, or the codes that an autoencoder makes of images.
They are stored in the data's cache as one .npy per split. The key covers everything that they
depend on: the rows' content, the weights, the model and the precision. A run stores the digest of
the weights (`reference.json`), so it resumes with the same reference even if the run with the
weights has changed. A cache entry is complete or absent (data/cache.py): an interrupted computation
leaves nothing.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from rich.console import Console
from rich.progress import track

from bigmodel_jax.checkpoint.digest import digests
from bigmodel_jax.config import Config
from bigmodel_jax.core import files, params, precision, processes, sharding
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import DataConfig, Rows
from bigmodel_jax.data.fields import Field
from bigmodel_jax.data.loader import EvalBatches
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.nn import lora
from bigmodel_jax.objectives.referenced import REFERENCE
from bigmodel_jax.optim import OptimConfig
from bigmodel_jax.training.fresh import fresh_state
from bigmodel_jax.training.state import computed
from bigmodel_jax.training.state import weights as weights_of

FILE = "reference.json"
FORMAT = 1
SPLITS = ("train", "validation")
ROWS = 256  # rows that are read at a time for the digest of their content


class Beside(NamedTuple):
    """A data config with computed arrays beside its rows; values (N, ...) by split and name."""

    data: DataConfig
    computed: dict[str, Field]
    values: dict[str, dict[str, np.ndarray]]

    def open(self, split: str) -> "RowsBeside":
        return RowsBeside(self.data.open(split), self.values[split])

    def row(self) -> dict[str, Field]:
        return {**self.data.row(), **self.computed}


class RowsBeside:
    """Rows with additional arrays. Other attributes are those of the wrapped rows."""

    def __init__(self, rows: Rows, values: dict[str, np.ndarray]):
        self._rows, self._values = rows, values

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        return self._rows.batch(indices, noise) | {name: x[indices] for name, x in self._values.items()}


class Found(NamedTuple):
    """Data with the reference's values beside its rows, and the digest of the reference's
    weights.
    """

    data: Beside | DataConfig
    weights: str


def blank(config: Config) -> Beside | DataConfig:
    """The data with zeros in place of computed values, for measurements of a step."""
    computed = config.objective.computed()
    if not computed:
        return config.data
    zeros = {
        name: np.zeros((len(config.data.open("train")), *field.shape), field.dtype) for name, field in computed.items()
    }
    return Beside(config.data, computed, {"train": zeros})


def find(
    config: Config,
    mesh,
    run_dir: Path,
    *,
    resumes: bool,
    console: Console | None = None,
    splits: tuple[str, ...] = SPLITS,
) -> Found:
    """The data with all arrays of `Objective.computed`, from the cache or computed now.

    All processes compute together on the mesh. With `resumes` the reference is the one with which
    the run in `run_dir` began. Raises ValueError where both its weights and its cache entry are
    gone.
    """
    computed = config.objective.computed()
    if not computed:
        return Found(config.data, "")
    source, (name,) = Source(config, mesh, _kept(run_dir) if resumes else ""), computed
    values = {split: {name: _of_split(config, mesh, split, source, console)} for split in splits}
    return Found(Beside(config.data, computed, values), source.digest)


def keep(run_dir: Path, found: Found) -> None:
    """Records the digest of the reference's weights in the run's folder."""
    if found.weights and processes.first():
        files.replace(run_dir / FILE, json.dumps({"weights": found.weights}) + "\n")


def _kept(run_dir: Path) -> str:
    path = run_dir / FILE
    return processes.from_first(json.loads(path.read_text())["weights"] if path.is_file() else "")


# ---------------------------------------------------------------- the weights


@dataclasses.dataclass(frozen=True)
class Still(OptimConfig):
    """An optimizer that changes no parameter and keeps no moments."""

    def transformation(self, rate, spec):
        return optax.identity()


@dataclasses.dataclass
class Source:
    """The reference's weights, read on first use. `known` is their digest if a run recorded it."""

    config: Config
    mesh: Any
    known: str

    @functools.cached_property
    def digest(self) -> str:
        return self.known or _digest(self.weights)

    @property
    def name(self) -> str:
        """The reference's name in messages and files: the objective's field, or REFERENCE."""
        return self.config.objective.computed_with or REFERENCE

    @functools.cached_property
    def weights(self) -> params.Tree:
        return self._of_branch() if self.config.objective.computed_with else self._of_model()

    def _of_branch(self) -> params.Tree:
        # If the run resumes, training/constants.py has compared these constants with its record.
        train = dataclasses.replace(self.config.train, init_from="", init_state="weights")
        constants = fresh_state(dataclasses.replace(self.config, train=train, optim=Still()), self.mesh).constants
        return {self.name: constants[self.name]}

    def _of_model(self) -> params.Tree:
        train, run = self.config.train, self.config.objective.reference_run
        train = dataclasses.replace(train, init_from=run or train.init_from, init_state="weights")
        config = dataclasses.replace(self.config, train=train, optim=Still())
        found = fresh_state(config, self.mesh)
        if run and (missing := [path for path in found.missing if not path.startswith(f"{lora.BRANCH}/")]):
            raise ValueError(f"objective.reference_run = {run!r} holds no {missing[0]}")
        weights = weights_of(found.state, found.constants)
        if self.known and _digest(weights) != self.known:
            raise ValueError(
                f"objective.reference_run = {run!r}: the reference's weights are no longer those with which this run began, "
                "and what was computed with them is not in the cache; restore one of the two, or start another run"
            )
        return weights


def _digest(weights: params.Tree) -> str:
    leaves = params.paths(weights)
    arrays = {f"{path}.{i}": x for path, node in sorted(leaves.items()) for i, x in enumerate(jax.tree.leaves(node))}
    return cache.key({name: int(n) for name, n in zip(arrays, np.asarray(digests(list(arrays.values()))), strict=True)})


# ---------------------------------------------------------------- one split


def _of_split(config: Config, mesh, split: str, source: Source, console: Console | None) -> np.ndarray:
    """The values (N, ...) of one split, from the cache or computed now."""
    rows, objective, model = config.data.open(split), config.objective, config.model
    if isinstance(getattr(model, "compute", None), Compute):  # these settings change only rounding
        model = dataclasses.replace(model, compute=Compute())
    # The cache key must contain whatever changes the values.
    content, by = _content(rows, objective.computed_from), objective.computed_by(model)
    facts = [content, source.digest, repr(by), repr(config.adapters), config.precision.compute]
    folder = config.data.root() / f"reference-{FORMAT}" / cache.key(facts)
    # All processes compute together, so they compute before one of them locks the cache.
    if not processes.from_first(cache.is_whole(folder)):
        if console:
            console.print(f"The {source.name} reads {len(rows):,} rows of the {split} split, once.")
        values = _compute(config, mesh, rows, source.weights, f"{source.name.capitalize()}, {split} split", console)
        cache.build(folder, lambda out: np.save(out / f"{source.name}.npy", values))
    return np.load(folder / f"{source.name}.npy", mmap_mode="r")


def _content(rows: Rows, names: tuple[str, ...]) -> str:
    """A digest of these arrays over all rows. Equal rows have an equal digest, so they share the
    computed values, whatever file they come from.
    """
    found = hashlib.sha256()
    for first in range(0, len(rows), ROWS):
        batch = rows.batch(np.arange(first, min(first + ROWS, len(rows))), None)
        for name in names:
            found.update(np.ascontiguousarray(batch[name]).data)
    return found.hexdigest()


def _compute(config: Config, mesh, rows: Rows, weights: params.Tree, title: str, console: Console | None) -> np.ndarray:
    """The values (N, ...) of all rows in order, computed on the mesh."""
    size = config.eval.batch_size or config.train.batch_size
    batches = EvalBatches(rows, size, mesh, config.parallel.rules, config.data.row())
    step, found = _make_step(config, mesh), []
    shown = console is not None and console.is_terminal and processes.first()
    for batch in track(batches, title, console=console, transient=True, disable=not shown):
        found.append(sharding.to_host(step(weights, batch)))
    (field,) = config.objective.computed().values()
    return np.concatenate(found)[: len(rows)].astype(field.dtype)


def _make_step(config: Config, mesh):
    """Compiles (weights, batch) -> values (B, ...), replicated, in the train step's precision."""
    model = config.make_model()

    def step(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel), precision.use(config.precision):
            weights = computed(config, model.spec, weights)
            return config.objective.compute(model, weights, batch)

    return jax.jit(step, out_shardings=sharding.replicated(mesh))
