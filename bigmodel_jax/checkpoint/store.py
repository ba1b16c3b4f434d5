"""Saves and restores {state, data position, config} through Orbax: atomic, asynchronous, verified.

One step is one folder, `<directory>/<step>/`:
  params/ frozen/ opt_state/ ...   one Orbax tree per field of the state, so that each can be read
  alone
  digest/                          (n,) uint32, one digest per leaf (digest.py); Orbax does not
  detect flipped bits
  meta/data.json                   step, config, data_state, leaves (manifest.py)
There may also be saves on the hosts' own disks (local.py). `restore` takes the newest complete save
of either kind. Reading changes nothing in the folder. A process's first save cleans it: folders of
unfinished saves are deleted, and damaged steps are renamed to `<step>.damaged`, so that they can be
saved again.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from bigmodel_jax.checkpoint import arrays, bucket, checkpointer, local, local_reading, manifest
from bigmodel_jax.checkpoint.digest import digests
from bigmodel_jax.checkpoint.local import Local
from bigmodel_jax.checkpoint.manifest import Damaged
from bigmodel_jax.config import CheckpointConfig
from bigmodel_jax.core import interrupts, mirror, paths, processes, sharding

# Orbax is imported inside functions, because importing it takes half a second that `--help` and
# `plan` do not need.

Tree = Any

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint that was read; step: the optimizer step that it was saved at."""

    state: Tree
    data_state: dict
    config: dict
    step: int


@dataclasses.dataclass
class Store:
    """A folder of checkpoints. As a context manager it waits for the last save at its end."""

    directory: Path
    config: CheckpointConfig
    copy_bytes: int | None = None  # bytes copied to host memory at a time; None: all at once, and `save` returns then
    checkpointer: Any = None  # Orbax's; made by the first save, because making it cleans the folder
    pending: int | None = None  # the step being written
    damaged: dict[int, str] = dataclasses.field(default_factory=dict)  # {step: what restore found wrong}
    # Open while a save is pending: it defers signals.
    patience: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    local: Local | None = None  # saves on the hosts' own disks

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind, *exception) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Waits for the last save, and raises OSError if it failed.

        failed: whether an exception ends the run. Local saves are then kept.
        """
        saved = False
        try:
            wait(self)
            saved = True
        finally:
            if self.checkpointer is not None:
                self.checkpointer.close()
                self.checkpointer = None
            if self.local is not None:
                local.close(self.local, max(_on_disk(self.directory), default=-1), failed or not saved)
                self.local = None


# ---------------------------------------------------------------- the folder


def open_store(directory: Path, cfg: CheckpointConfig, *, copy_bytes: int | None = None) -> Store:
    """The checkpoints in `directory`, which the first save creates.

    copy_bytes: the most host memory that a save uses for copies, except for a larger single array;
    None = no limit. With a limit, a save reads the arrays until it is done, so they may not be
    donated before `wait`.
    """
    logging.getLogger("absl").addFilter(_not_orbax)
    directory = mirror.origin(Path(directory))
    if paths.is_remote(directory):
        bucket.bound_retries()
    return Store(directory, cfg, copy_bytes)


def open_local(store: Store, run_dir: Path, mesh: jax.sharding.Mesh) -> int:
    """The newest step that `restore` may find, or -1. All processes call this together.

    If the config names a `local_dir`, this looks for local saves, and enables new ones. A local
    save from another mesh or another number of processes is not used. A warning says so.
    """
    last = latest_step(store)
    last = processes.from_first(-1 if last is None else last)
    if store.config.local_dir:
        store.local = local_reading.open_local(store.config.local_dir, run_dir, mesh, newer_than=last)
        last = max([last, *local.steps(store.local)])
    return last


def _not_orbax(record: logging.LogRecord) -> bool:
    """Filters out Orbax's log records: it logs a traceback of each failure and raises it as
    well."""
    return "orbax" not in record.pathname


def _on_disk(directory: Path) -> list[int]:
    with paths.answering(directory):
        if not directory.is_dir():
            return []
        folders = [p for p in directory.iterdir() if p.name.isdecimal() and p.is_dir()]
        return sorted(int(p.name) for p in folders if bucket.is_finished(p))


def steps(store: Store) -> list[int]:
    """The steps with a checkpoint, ascending, including one being written, without damaged ones."""
    found = set(_on_disk(store.directory)) - set(store.damaged)
    return sorted(found | ({store.pending} if store.pending is not None else set()))


def latest_step(store: Store) -> int | None:
    """The newest of `steps`; None if there is none."""
    return max(steps(store), default=None)


def read_config(directory: Path) -> dict:
    """The config in the newest readable checkpoint, without reading arrays.

    Raises ValueError if there is none.
    """
    store = open_store(directory, CheckpointConfig())
    return _newest_good(store, None, lambda step: manifest.read(store.directory / str(step)))["config"]


# ---------------------------------------------------------------- save


def save(
    store: Store, step: int, state: Tree, data_state: dict, config: dict, metrics: dict[str, float] | None = None
) -> None:
    """Saves {state, data_state, config}. Returns when the arrays are copied and may be donated.

    data_state, config: JSON values. metrics: only the value of `checkpoint.best_metric` is kept. It
    first waits for the previous save, and raises OSError with folder and step if that save failed.
    Finished saves stay, and the next save works again. Raises ValueError if `step` has a
    checkpoint.
    """
    wait(store)
    if step in steps(store):
        raise ValueError(f"checkpoint: step {step} is already saved in {store.directory}")
    flat = manifest.flatten(state)
    # The first part of a path is the field, which becomes an Orbax tree of its own.
    fields = traverse_util.unflatten_dict(flat, sep="/")
    assert not fields.keys() & {"digest", "meta", "metrics"}, sorted(fields)
    meta = {"step": step, "config": config, "data_state": data_state}
    meta |= {"leaves": {path: manifest.describe(x) for path, x in flat.items()}}
    items = fields | {"digest": digests(list(flat.values())), "meta": manifest.seal(meta)}
    name = store.config.best_metric
    ranking = {name: float(metrics[name])} if name in (metrics or {}) else None
    try:
        if store.checkpointer is None:
            store.checkpointer = checkpointer.make_checkpointer(
                store.directory, store.config, store.copy_bytes, store.damaged
            )
        # without `force` Orbax's policy skips a step that is not newer than the newest
        store.patience.enter_context(interrupts.patient())
        store.checkpointer.save_checkpointables_async(step, items, force=True, metrics=ranking)
    except OSError as error:
        store.patience.close()
        raise _failed(store, step, error) from error
    store.pending = step


def save_local(store: Store, step: int, state: Tree, data_state: dict, config: dict) -> None:
    """Like `save`, to the hosts' own disks, after `open_local`. A failure is only a warning."""
    local.save(store.local, step, state, data_state, config)


def wait(store: Store) -> None:
    """Returns when the last save is on disk. Raises OSError with folder and step if it failed."""
    if store.pending is None:
        return
    step, store.pending = store.pending, None
    try:
        store.checkpointer.wait()
    except Exception as error:  # any exception of the writing thread
        raise _failed(store, step, error) from error
    finally:
        store.patience.close()


def _failed(store: Store, step: int, error: Exception) -> OSError:
    """The error to raise. Deletes what the failed save has written, to free space."""
    if jax.process_index() == 0:
        checkpointer.remove_unfinished(store.directory, step)
    store.checkpointer = None  # its list of steps is wrong now; the next save makes a new checkpointer
    return OSError(f"checkpoint: step {step} could not be saved in {store.directory}: {manifest.reason(error)}")


# ---------------------------------------------------------------- restore


def restore(
    store: Store, abstract_state: Tree, step: int | None = None, left: frozenset[str] = frozenset()
) -> Restored | None:
    """The newest undamaged checkpoint, or the shared one of `step`, verified and resharded.

    abstract_state: tree of `jax.ShapeDtypeStruct` with shardings of any mesh; without sharding: the
    first device. left: leaves that a save may hold beside it, which are not read. A damaged
    checkpoint is named in one warning, and the one before it is used. Raises ValueError, one line,
    if there is no checkpoint, if all are damaged, or if the saved tree differs. Returns None if
    there were only local saves, and all are damaged.
    """

    def load(step: int) -> Restored:
        state, meta = _load(store, step, abstract_state, True, left)
        return Restored(state, meta["data_state"], meta["config"], step)

    def load_local(step: int) -> Restored:
        state, meta = arrays.together(lambda: local_reading.load(store.local, step, abstract_state, left))
        return Restored(state, meta["data_state"], meta["config"], step)

    wait(store)
    return _newest_good(store, step, load, load_local if store.local and step is None else None)


def restore_params(
    store: Store, abstract_fields: dict[str, Tree], step: int | None = None, left: frozenset[str] = frozenset()
) -> dict[str, Tree]:
    """Only the fields asked for, e.g. {"params": ..., "ema": ...}, read as `restore` reads them."""
    wait(store)
    return _newest_good(store, step, lambda step: _load(store, step, abstract_fields, False, left)[0])


def _newest_good(
    store: Store, step: int | None, load: Callable[[int], Any], load_local: Callable[[int], Any] | None = None
) -> Any:
    found = _on_disk(store.directory)
    if step is not None and step not in found:
        raise ValueError(f"checkpoint: no step {step} in {store.directory}; it holds {found or 'none'}")
    # The sort key is 2 * step for a shared save and 2 * step + 1 for a local one. So at equal steps
    # the local save, which is nearer, comes first.
    numbers = [2 * s for s in (found if step is None else [step])]
    numbers += [2 * s + 1 for s in local.steps(store.local)] if load_local else []
    damaged, candidates = [], iter(sorted(numbers, reverse=True))
    while (number := processes.from_first(next(candidates, -1))) >= 0:
        candidate, is_local = divmod(number, 2)
        try:
            result = load_local(candidate) if is_local else load(candidate)
        except Damaged as error:
            if not is_local:
                store.damaged[candidate] = str(error)
            damaged.append(f"{'local ' if is_local else ''}step {candidate} ({error})")
            continue
        if damaged:
            log.warning("checkpoint: damaged in %s: %s; using step %d", store.directory, "; ".join(damaged), candidate)
        return result
    if not damaged:
        raise ValueError(f"checkpoint: no finished checkpoint in {store.directory}")
    if load_local and not found:
        log.warning("checkpoint: damaged: %s; the run starts again from its beginning", "; ".join(damaged))
        return None
    raise ValueError(f"checkpoint: no undamaged checkpoint in {store.directory}: {'; '.join(damaged)}")


def _load(store: Store, step: int, abstract: Tree, whole: bool, left: frozenset[str]) -> tuple[Tree, dict]:
    """(tree like `abstract`, meta) of one step; whole: whether other saved fields are an error."""
    folder = store.directory / str(step)
    with paths.answering(folder):
        meta = arrays.together(lambda: manifest.read(folder))
    if meta["step"] != step:
        raise Damaged(f"meta/data.json is of step {meta['step']}")
    flat = manifest.flatten(abstract)
    manifest.check_same_tree(folder, flat, meta["leaves"], whole, left)
    wanted = {path: arrays.placed(x) for path, x in flat.items()} | {"digest": np.zeros(len(meta["leaves"]), np.uint32)}
    wanted = traverse_util.unflatten_dict(wanted, sep="/")
    # Orbax must load partially if the save has leaves that are not read.
    some = not left.isdisjoint(meta["leaves"])
    items = arrays.together(lambda: arrays.read(folder, wanted, some=some))
    saved = dict(zip(meta["leaves"], items.pop("digest"), strict=True))
    found = traverse_util.flatten_dict(items, sep="/")
    leaves = [found[path] for path in flat]
    bad = [path for path, d in zip(flat, sharding.to_host(digests(leaves)), strict=True) if d != saved[path]]
    if bad:
        raise Damaged(f"wrong digest of {manifest.few(bad)}")
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), meta
