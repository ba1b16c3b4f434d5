"""Rows to global batches on a mesh. Batch N is a function of (seed, N) alone, on any number of devices and processes."""

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

Batch = dict[str, jax.Array]
FEW = 10_000  # rows of a batch for which no row is made to see its size


class Sampler:
    """The endless shuffled order of a split: batch N holds its examples N * batch_size .. (N + 1) * batch_size."""

    def __init__(self, rows: Rows, batch_size: int, seed: int):
        self.rows, self.batch_size = rows, batch_size
        self.start = shuffle.start(seed)

    def local(self, number: int, low: int = 0, high: int | None = None) -> dict[str, np.ndarray]:
        """Rows [low, high) of global batch `number`."""
        high = self.batch_size if high is None else high
        examples = number * self.batch_size + np.arange(low, high)
        return self.rows.batch(self.order(examples), shuffle.noise(self.start, examples))

    def order(self, examples: np.ndarray) -> np.ndarray:
        """The rows of these examples; those of a mixture know their own."""
        if hasattr(self.rows, "order"):
            return self.rows.order(self.start, examples, self.batch_size)
        return shuffle.order(self.start, examples, len(self.rows))


class BatchIterator:
    """Endless global batches, an `Experience`; its whole state is the number of the next one.

    From `prefetch` on a thread prepares the next batch. The caller says when: once the step is on its way, so that thread
    and loop do not fight for the interpreter while the device waits for both.
    """

    def __init__(self, sampler: Sampler, mesh: Mesh, rules: Rules, row: Row | None = None):
        self.rows, self._batch_size = sampler.rows, sampler.batch_size
        place = Placement(mesh, rules, sampler.batch_size, row)
        check_room(sampler.rows, place, "train.batch_size")
        self._make = lambda number: place(sampler.local(number, place.low, place.high))
        self._next = 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._ahead: concurrent.futures.Future | None = None

    def enter(self, run_dir: Path, constants: Any) -> None:
        """Rows depend on neither."""

    def measured(self) -> dict[str, Mean]:
        """What each part of a mixture has given so far, known from the number of the next batch alone."""
        if not hasattr(self.rows, "given"):
            return {}
        given = self.rows.given(self._next, self._batch_size)
        return {name: Mean(np.float64(value), np.float64(1)) for name, value in given.items()}

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        return self.next(None)

    def next(self, state: Any) -> Batch:
        """The next batch, whatever the weights are."""
        self.prefetch()
        batch = self._ahead.result()
        self._next, self._ahead = self._next + 1, None
        return batch

    def prefetch(self) -> None:
        """Begins to prepare the next batch, unless that has begun."""
        if self._ahead is None:
            self._ahead = self._thread.submit(self._make, self._next)

    def wait(self, seconds: float) -> bool:
        """Whether the next batch is there, after so many seconds at most."""
        self.prefetch()
        return self._ahead.done() or bool(concurrent.futures.wait([self._ahead], seconds).done)

    def position(self) -> dict[str, int]:
        return {"next_batch": self._next}

    def seek(self, step: int, position: dict[str, int] | None = None) -> None:
        """Each step takes one batch, so a run that begins at a step goes on with the batch of that number."""
        self._next, self._ahead = step if position is None else int(position["next_batch"]), None


class Placement:
    """Puts this process's rows [low, high) of a global batch onto the mesh, as parts of global arrays.

    row: what a row declares of its arrays; one that is not declared lies whole on every device that has its rows.
    """

    def __init__(self, mesh: Mesh, rules: Rules, batch_size: int, row: Row | None = None):
        self.mesh, self.rules, self.batch_size, self.row = mesh, rules, batch_size, row or {}
        rows = sharding.batch_sharding(mesh, rules).addressable_devices_indices_map((batch_size,))
        bounds = [index[0].indices(batch_size) for index in rows.values()]
        self.low, self.high = min(b[0] for b in bounds), max(b[1] for b in bounds)

    def __call__(self, local: dict[str, np.ndarray]) -> Batch:
        """`local` must not be written to afterwards: on CPU the device arrays may be the same memory."""
        fields.check(self.row, local)
        where = {k: self._sharding(k) for k in local}
        if jax.process_count() == 1:
            return jax.device_put(local, where)
        return {k: self._assemble(v, where[k]) for k, v in local.items()}

    @functools.cache  # noqa: B019 - lives as long as its iterator
    def _sharding(self, name: str) -> jax.sharding.Sharding:
        return sharding.batch_sharding(self.mesh, self.rules, self.row[name].axes if name in self.row else ())

    def _assemble(self, local: np.ndarray, target: jax.sharding.Sharding) -> jax.Array:
        def shard(index):
            start, stop, _ = index[0].indices(self.batch_size)
            return local[(slice(start - self.low, stop - self.low), *index[1:])]

        return jax.make_array_from_callback((self.batch_size, *local.shape[1:]), target, shard)


def check_room(rows: Rows, place: Placement, option: str) -> None:
    """ValueError where this process's rows of a batch do not fit in host memory; `option` names the batch's size."""
    num = place.high - place.low
    if num < FEW:
        return
    row = rows.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
    host = Room(host_memory(), "this host")
    refuse(f"{option} = {place.batch_size}", num * sum(x.nbytes for x in row.values()), host, "a smaller batch")


def make_iterator(
    cfg: DataConfig, *, batch_size: int, seed: int, mesh: Mesh, split: str = "train", rules: Rules = Rules()
) -> BatchIterator:
    """Endless shuffled batches of `batch_size` rows over all processes, laid out by `rules` on `mesh`.

    ValueError for data that cannot be used (see the source's docstring).
    """
    return BatchIterator(Sampler(cfg.open(split), batch_size, seed), mesh, rules, cfg.row())


class EvalBatches:
    """Every row of a split once, in order; the rows that fill up the last batch have weight 0. Can be iterated again."""

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
        """{name: its rows [first, end)} of the parts of a mixture that batch `number` has rows of; {} where there are none."""
        if not hasattr(self.rows, "parts_between"):
            return {}
        first = number * self.batch_size
        return self.rows.parts_between(first, min(first + self.batch_size, len(self.rows)))

    def only(self, number: int, first: int, end: int) -> Batch:
        """Batch `number` in which the rows outside [first, end) have weight 0."""
        return self._place(self.local(number, self._place.low, self._place.high, first, end))

    def local(self, number: int, low: int, high: int, first: int = 0, end: int | None = None) -> dict[str, np.ndarray]:
        """Rows [low, high) of global batch `number`; those outside [first, end) of the split have weight 0."""
        end = len(self.rows) if end is None else end
        indices = number * self.batch_size + np.arange(low, high)
        out = self.rows.batch(np.minimum(indices, len(self.rows) - 1), None)
        if "weights" not in out:
            raise ValueError(f"data: the rows hold no 'weights' ({', '.join(out)}); {fields.WEIGHTS}")
        out["weights"][(indices < first) | (indices >= end)] = 0.0
        return out


def eval_batches(
    cfg: DataConfig, *, batch_size: int, mesh: Mesh, split: str = "validation", rules: Rules = Rules()
) -> EvalBatches:
    """One pass over a split, for exact metrics: every record or token counts once."""
    return EvalBatches(cfg.open(split), batch_size, mesh, rules, cfg.row())
