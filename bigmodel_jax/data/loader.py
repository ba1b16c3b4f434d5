"""Turns rows into global batches on a mesh.

Batch N depends only on (seed, N), on any number of devices and processes.
"""

import concurrent.futures
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.core import sharding
from bigmodel_jax.core.device_memory import Room, host_memory, refuse
from bigmodel_jax.core.metrics import Mean
from bigmodel_jax.core.sharding import Rules
from bigmodel_jax.data import fields, shuffle
from bigmodel_jax.data.base import DataConfig, Rows
from bigmodel_jax.data.fields import Row
from bigmodel_jax.data.images import mix

Batch = dict[str, jax.Array]
FEW = 10_000  # a smaller batch is not checked against the memory of the host


class Sampler:
    """The endless shuffled order of a split. Batch N begins with example N * batch_size."""

    def __init__(self, rows: Rows, batch_size: int, seed: int):
        self.rows, self.batch_size = rows, batch_size
        self.start = shuffle.start(seed)

    def local(self, number: int, low: int = 0, high: int | None = None) -> dict[str, np.ndarray]:
        """Return rows [low, high) of global batch `number`."""
        high = self.batch_size if high is None else high
        return self.examples(number * self.batch_size + np.arange(low, high))

    def examples(self, wanted: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows of consecutive training examples."""
        # Mixup needs the partner of each example. So whole pairs are read, and the extra rows are
        # dropped.
        examples = mix.with_partners(self.rows, wanted)
        noise = shuffle.noise(self.start, examples)
        batch = self.rows.batch(self.order(examples), noise)
        if examples is wanted:
            return batch
        batch, here = self.rows.mix(batch, noise), np.isin(examples, wanted)
        return {name: x[here] for name, x in batch.items()}

    def order(self, examples: np.ndarray) -> np.ndarray:
        """Return the row numbers of these examples. A mixture has an order of its own."""
        if hasattr(self.rows, "order"):
            return self.rows.order(self.start, examples, self.batch_size)
        return shuffle.order(self.start, examples, len(self.rows))


class BatchIterator:
    """Endless global batches, as an `Experience`. The only state is the number of the next batch.

    `prefetch` prepares the next batch in a thread. The caller starts it after the step is
    dispatched, so that thread and loop do not compete for the interpreter while the device waits
    for both.
    """

    def __init__(self, sampler: Sampler, mesh: Mesh, rules: Rules, row: Row | None = None):
        self.rows, self._batch_size = sampler.rows, sampler.batch_size
        place = Placement(mesh, rules, sampler.batch_size, row)
        check_room(sampler.rows, place, "train.batch_size")
        self._make = lambda number: place(sampler.local(number, place.low, place.high))
        self._next = 0
        # One thread makes batches one after another, so rows need not be thread-safe.
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._ahead: concurrent.futures.Future | None = None

    def enter(self, run_dir: Path, constants: Any) -> None:
        """Do nothing, because rows depend on neither argument."""

    def measured(self) -> dict[str, Mean]:
        """Return the counts of examples that each part of a mixture gave before the next batch."""
        if not hasattr(self.rows, "given"):
            return {}
        given = self.rows.given(self._next, self._batch_size)
        return {name: Mean(np.float64(value), np.float64(1)) for name, value in given.items()}

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        return self.next(None)

    def next(self, state: Any) -> Batch:
        """Return the next batch. It does not depend on `state`."""
        self.prefetch()
        batch = self._ahead.result()
        self._next, self._ahead = self._next + 1, None
        return batch

    def prefetch(self) -> None:
        """Start preparing the next batch, unless that has started already."""
        if self._ahead is None:
            self._ahead = self._thread.submit(self._make, self._next)

    def wait(self, seconds: float) -> bool:
        """Wait for the next batch for at most this many seconds, and tell whether it is ready."""
        self.prefetch()
        return self._ahead.done() or bool(concurrent.futures.wait([self._ahead], seconds).done)

    def position(self) -> dict[str, int]:
        return {"next_batch": self._next}

    def seek(self, step: int, position: dict[str, int] | None = None) -> None:
        """Continue at a saved position, or else at the batch with the step's number.

        Each step takes one batch.
        """
        # A batch that was prepared for the former position is dropped.
        self._next, self._ahead = step if position is None else int(position["next_batch"]), None


class Placement:
    """Puts this process's rows [low, high) of a global batch onto the mesh, as global arrays.

    `row` declares the arrays. An undeclared array is split along the batch alone.
    """

    def __init__(self, mesh: Mesh, rules: Rules, batch_size: int, row: Row | None = None):
        self.mesh, self.rules, self.batch_size, self.row = mesh, rules, batch_size, row or {}
        # The rows that this process must supply are those of its own devices.
        rows = sharding.batch_sharding(mesh, rules).addressable_devices_indices_map((batch_size,))
        bounds = [index[0].indices(batch_size) for index in rows.values()]
        self.low, self.high = min(b[0] for b in bounds), max(b[1] for b in bounds)

    def __call__(self, local: dict[str, np.ndarray]) -> Batch:
        """Return the batch on the mesh. `local` holds the rows that this process supplies.

        The caller must not write to `local` afterwards: on CPU the device arrays may share its
        memory.
        """
        fields.check(self.row, local)
        where = {k: self._sharding(k) for k in local}
        # One transfer for all arrays. It returns before the copy has ended.
        if jax.process_count() == 1:
            return jax.device_put(local, where)
        return {k: self._assemble(v, where[k]) for k, v in local.items()}

    @functools.cache  # noqa: B019 - lives as long as its iterator
    def _sharding(self, name: str) -> jax.sharding.Sharding:
        return sharding.batch_sharding(self.mesh, self.rules, self.row[name].axes if name in self.row else ())

    def _assemble(self, local: np.ndarray, target: jax.sharding.Sharding) -> jax.Array:
        """Build a global array from this process's rows."""

        def shard(index):
            # The callback counts rows of the global batch, and `local` begins with row `low` of it.
            start, stop, _ = index[0].indices(self.batch_size)
            return local[(slice(start - self.low, stop - self.low), *index[1:])]

        return jax.make_array_from_callback((self.batch_size, *local.shape[1:]), target, shard)


def check_room(rows: Rows, place: Placement, option: str) -> None:
    """Raise ValueError where this process's part of a batch does not fit in host memory.

    `option` is the option that sets the batch size.
    """
    num = place.high - place.low
    if num < FEW:
        return
    row = rows.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
    host = Room(host_memory(), "this host")
    refuse(f"{option} = {place.batch_size}", num * sum(x.nbytes for x in row.values()), host, "a smaller batch")


def make_iterator(
    cfg: DataConfig, *, batch_size: int, seed: int, mesh: Mesh, split: str = "train", rules: Rules = Rules()
) -> BatchIterator:
    """Return endless shuffled batches of `batch_size` rows in all, laid out by `rules` on `mesh`.

    Raises ValueError for unusable data. The source's docstring says what is unusable.
    """
    return BatchIterator(Sampler(cfg.open(split), batch_size, seed), mesh, rules, cfg.row())


class EvalBatches:
    """Every row of a split once, in order. Rows that pad the last batch have weight 0.

    The object can be iterated repeatedly.
    """

    def __init__(self, rows: Rows, batch_size: int, mesh: Mesh, rules: Rules, row: Row | None = None):
        self.rows, self.batch_size = rows, batch_size
        self._place = Placement(mesh, rules, batch_size, row)
        check_room(rows, self._place, "eval.batch_size")

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self)):
            yield self._place(self.local(number, self._place.low, self._place.high))

    def parts(self, number: int) -> dict[str, tuple[int, int]]:
        """Return {name: its rows [first, end)} of the mixture's parts that have rows in batch
        `number`.

        {} where the rows are no mixture.
        """
        if not hasattr(self.rows, "parts_between"):
            return {}
        first = number * self.batch_size
        return self.rows.parts_between(first, min(first + self.batch_size, len(self.rows)))

    def only(self, number: int, first: int, end: int) -> Batch:
        """Return batch `number` with weight 0 on the rows outside [first, end)."""
        return self._place(self.local(number, self._place.low, self._place.high, first, end))

    def local(self, number: int, low: int, high: int, first: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Return rows [low, high) of batch `number`; rows outside [first, end) have weight 0."""
        end = len(self.rows) if end is None else end
        indices = number * self.batch_size + np.arange(low, high)
        # Indices beyond the end repeat the last row. Its copies get weight 0 below.
        out = self.rows.batch(np.minimum(indices, len(self.rows) - 1), None)
        if "weights" not in out:
            raise ValueError(f"data: the rows hold no 'weights' ({', '.join(out)}); {fields.WEIGHTS}")
        out["weights"][(indices < first) | (indices >= end)] = 0.0
        return out


def eval_batches(
    cfg: DataConfig, *, batch_size: int, mesh: Mesh, split: str = "validation", rules: Rules = Rules()
) -> EvalBatches:
    """Return one pass over a split for exact metrics: every record or token counts once."""
    return EvalBatches(cfg.open(split), batch_size, mesh, rules, cfg.row())
