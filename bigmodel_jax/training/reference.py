"""What an objective's reference says of every row, computed once before a run's first step and kept.

The values lie in the data's cache as one .npy a split, under a key of all that they are made from: the rows' content, the
weights, the model and the precision. A run keeps the digest of the weights (`reference.json`), so that it goes on with the
same reference, whatever has become of the run that the weights came from. A cache is whole or absent (data/cache.py): a
computation that is cut short leaves nothing.
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
ROWS = 256  # read at a time where rows are compared


class Beside(NamedTuple):
    """A data config with what was computed for its rows beside them; values: (N, ...) by split and name."""

    data: DataConfig
    computed: dict[str, Field]
    values: dict[str, dict[str, np.ndarray]]

    def open(self, split: str) -> "RowsBeside":
        return RowsBeside(self.data.open(split), self.values[split])

    def row(self) -> dict[str, Field]:
        return {**self.data.row(), **self.computed}


class RowsBeside:
    """Rows with further arrays; whatever else they offer is the rows' own."""

    def __init__(self, rows: Rows, values: dict[str, np.ndarray]):
        self._rows, self._values = rows, values

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        return self._rows.batch(indices, noise) | {name: x[indices] for name, x in self._values.items()}


class Found(NamedTuple):
    """Data with the reference's values beside its rows, and the digest of the weights that gave them, for `keep`."""

    data: Beside | DataConfig
    weights: str


def blank(config: Config) -> Beside | DataConfig:
    """The data with zeros in the place of what a run would compute: for measurements of a step."""
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
    """The data with all that the objective wants computed, from the cache, or computed now on the mesh by all processes.

    resumes: whether the reference is the one with which the run in `run_dir` began. ValueError where its weights are gone
    and its cache, too.
    """
    computed = config.objective.computed()
    if not computed:
        return Found(config.data, "")
    source = Source(config, mesh, _kept(run_dir) if resumes else "")
    values = {split: {REFERENCE: _of_split(config, mesh, split, source, console)} for split in splits}
    return Found(Beside(config.data, computed, values), source.digest)


def keep(run_dir: Path, found: Found) -> None:
    """Records in the run's folder which reference it has."""
    if found.weights and processes.first():
        files.replace(run_dir / FILE, json.dumps({"weights": found.weights}) + "\n")


def _kept(run_dir: Path) -> str:
    path = run_dir / FILE
    return processes.from_first(json.loads(path.read_text())["weights"] if path.is_file() else "")


# ---------------------------------------------------------------- the weights


@dataclasses.dataclass(frozen=True)
class Still(OptimConfig):
    """Moves nothing, and so keeps no moments."""

    def transformation(self, rate, spec):
        return optax.identity()


@dataclasses.dataclass
class Source:
    """The weights of the reference, read when they are needed; known: their digest, where a run has recorded it."""

    config: Config
    mesh: Any
    known: str

    @functools.cached_property
    def digest(self) -> str:
        return self.known or _digest(self.weights)

    @functools.cached_property
    def weights(self) -> params.Tree:
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
                "and what was computed with them is not in the cache; bring either back, or start another run"
            )
        return weights


def _digest(weights: params.Tree) -> str:
    leaves = params.paths(weights)
    arrays = {f"{path}.{i}": x for path, node in sorted(leaves.items()) for i, x in enumerate(jax.tree.leaves(node))}
    return cache.key({name: int(n) for name, n in zip(arrays, np.asarray(digests(list(arrays.values()))), strict=True)})


# ---------------------------------------------------------------- one split


def _of_split(config: Config, mesh, split: str, source: Source, console: Console | None) -> np.ndarray:
    """(N, 2) float32."""
    rows = config.data.open(split)
    model = config.model
    if isinstance(getattr(model, "compute", None), Compute):  # how it is computed changes rounding alone
        model = dataclasses.replace(model, compute=Compute())
    facts = [_content(rows), source.digest, repr(model), repr(config.adapters), config.precision.compute]
    folder = config.data.root() / f"reference-{FORMAT}" / cache.key(facts)
    # All processes compute together, and so before any of them holds the cache's lock.
    if not processes.from_first(cache.is_whole(folder)):
        if console:
            console.print(f"The reference reads {len(rows):,} rows of the {split} split, once.")
        values = _compute(config, mesh, rows, source.weights, f"Reference, {split} split", console)
        cache.build(folder, lambda out: np.save(out / f"{REFERENCE}.npy", values))
    return np.load(folder / f"{REFERENCE}.npy", mmap_mode="r")


def _content(rows: Rows) -> str:
    """A digest of the texts of all rows: values belong to texts, wherever these come from."""
    found = hashlib.sha256()
    for first in range(0, len(rows), ROWS):
        batch = rows.batch(np.arange(first, min(first + ROWS, len(rows))), None)
        for name in ("tokens", "targets", "weights"):
            found.update(np.ascontiguousarray(batch[name]).data)
    return found.hexdigest()


def _compute(config: Config, mesh, rows: Rows, weights: params.Tree, title: str, console: Console | None) -> np.ndarray:
    """(N, 2) float32 of all rows, in order, on the mesh."""
    size = config.eval.batch_size or config.train.batch_size
    batches = EvalBatches(rows, size, mesh, config.parallel.rules, config.data.row())
    step, found = _make_step(config, mesh), []
    shown = console is not None and console.is_terminal and processes.first()
    for batch in track(batches, title, console=console, transient=True, disable=not shown):
        found.append(sharding.to_host(step(weights, batch)))
    return np.concatenate(found)[: len(rows)].astype(np.float32)


def _make_step(config: Config, mesh):
    """(weights, batch) -> (B, 2) log-probabilities in every process, in the precision of the train step."""
    model = config.make_model()

    def step(weights, batch):
        with sharding.use(mesh, config.parallel.rules, config.parallel), precision.use(config.precision):
            weights = computed(config, model.spec, weights)
            return config.objective.log_probs(model, weights, batch)

    return jax.jit(step, out_shardings=sharding.replicated(mesh))
