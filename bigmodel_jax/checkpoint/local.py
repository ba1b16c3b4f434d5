"""Local saves: each process writes its own shards to a disk, or memory, of its host, and another host keeps a copy.

`<local_dir>/<run>/<process>/<step>.<attempt>/` holds the files of pieces.py: `own_<p>` of that process and `copy_<p>` of
the one whose copy it keeps. <run> is made of a number in the run's folder and the folder's path, so that no other run's
saves are found; <attempt> is another one at each start, so that no save is put together from two. A step is whole where
the pieces of every process are somewhere. The loop waits while shards are copied to the host's memory; a thread does
the rest, and only when every process has written its pieces and their copy are older saves deleted.
"""

import contextlib
import dataclasses
import logging
import re
import shutil
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigmodel_jax.checkpoint import exchange, manifest, pieces
from bigmodel_jax.core import files, processes

NAME = re.compile(r"(\d+)\.([0-9a-f]{8})")  # of a step's folder
FILE = re.compile(r"(own|copy)_(\d+)")

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Local:
    """The local saves of one run, as one process of it sees them."""

    layout: str  # the mesh and the number of processes, in words
    id_file: Path  # in the run's folder
    run_id: str = ""
    attempt: str = ""
    folder: Path = Path()  # of this run on this host
    hosts: list[str] = dataclasses.field(default_factory=list)  # of every process
    door: exchange.Exchange | None = None
    held: dict[int, dict] = dataclasses.field(default_factory=dict)  # whole: {step: {name, where: {file: [process]}}}
    thread: threading.Thread | None = None
    last: int = -1  # the newest step that this attempt has written whole
    trouble: dict[int, str] = dataclasses.field(default_factory=dict)  # of the last save, by process
    headers: dict[tuple[str, str], dict] = dataclasses.field(default_factory=dict)  # of files that were read
    unshared: dict[tuple, frozenset] = dataclasses.field(default_factory=dict)  # see _unshared

    @property
    def me(self) -> int:
        return jax.process_index()


# ---------------------------------------------------------------- save


def save(local: Local, step: int, state: Any, data_state: dict, config: dict) -> None:
    """Returns once the shards are in the host's memory; a save that fails is one warning line, and the run goes on.

    First waits for the save before.
    """
    wait(local)
    flat = {path: plain(x) for path, x in manifest.flatten(state).items()}
    meta = {"name": f"{step}.{local.attempt}", "step": step, "config": config, "data_state": data_state}
    meta |= {"layout": local.layout, "leaves": {path: manifest.describe(x) for path, x in flat.items()}}
    unshared = frozenset().union(*(_unshared(local, i, x) for i, x in enumerate(flat.values())))
    copied = _to_host(list(flat.values()))
    local.thread = threading.Thread(
        target=_finish, args=(local, step, meta, copied, unshared), name="local save", daemon=True
    )
    local.thread.start()


def steps(local: Local) -> list[int]:
    """The steps that were whole when the run started, ascending, the same in every process."""
    return sorted(local.held)


def wait(local: Local) -> None:
    """Returns when the last save is written in every process, or has failed."""
    if local.thread is not None:
        local.thread.join()
        local.thread = None


def plain(x: jax.Array) -> jax.Array:
    """`x`, or the numbers of which its random keys are made."""
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _to_host(leaves: list[jax.Array]) -> dict[pieces.Key, np.ndarray]:
    """Every shard of this process, once; copies, since the step to come writes into the arrays' memory."""
    shards = {}
    for leaf, x in enumerate(leaves):
        for shard in x.addressable_shards:
            shards.setdefault(pieces.key(leaf, shard.index, x.shape), shard.data)
    for data in shards.values():
        data.copy_to_host_async()
    return {key: _copied(data) for key, data in shards.items()}


def _copied(data: jax.Array) -> np.ndarray:
    """One shard in memory of its own."""
    (device,) = data.devices()
    if device.platform != "cpu" and data.sharding.memory_kind == device.default_memory().kind:
        return np.asarray(data, order="C")  # a copy by itself
    # numpy's view of an array in the host's memory is that memory.
    return np.array(data, order="C", copy=True)


def _unshared(local: Local, leaf: int, x: jax.Array) -> frozenset[pieces.Key]:
    """This process's shards of `x` that no other host has."""
    if jax.process_count() == 1:
        return frozenset()
    names = local.hosts if len(set(local.hosts)) > 1 else range(len(local.hosts))
    known = (leaf, x.sharding, x.shape)
    if known not in local.unshared:
        hosts: dict[pieces.Key, set] = {}
        for device, index in x.sharding.devices_indices_map(x.shape).items():
            hosts.setdefault(pieces.key(leaf, index, x.shape), set()).add(names[device.process_index])
        local.unshared[known] = frozenset(key for key, found in hosts.items() if found == {names[local.me]})
    return local.unshared[known]


def _finish(local: Local, step: int, meta: dict, copied: dict[pieces.Key, np.ndarray], unshared: frozenset) -> None:
    """What a save does beside the loop."""
    began = time.perf_counter()
    try:
        _write(local, meta, copied, unshared)
        text = ""
    except (OSError, ValueError) as error:
        text = f"{error.strerror}: {error.filename}" if getattr(error, "filename", None) else str(error)
        shutil.rmtree(local.folder / str(local.me) / meta["name"], ignore_errors=True)  # room on a full disk
    try:
        trouble = processes.gather("local saved", meta["name"], text)
    except RuntimeError as error:
        log.info("checkpoint: the job ended before the local save of step %d: %s", step, manifest.reason(error))
        return
    if trouble:
        process, text = next(iter(trouble.items()))
        # Once a kind: a disk that is full stays so for many saves.
        level = logging.WARNING if trouble.keys() != local.trouble.keys() else logging.INFO
        said = (
            "checkpoint: the local save of step %d failed in process %d: %s; the run goes on, and the save before stays"
        )
        log.log(level, said, step, process, text)
    else:
        local.last = step
        log.info("step %d saved locally in %.2f s", step, time.perf_counter() - began)
    local.trouble = trouble
    _clean(local, step, whole=not trouble)


def _write(local: Local, meta: dict, copied: dict[pieces.Key, np.ndarray], unshared: frozenset) -> None:
    if processes.first() and not local.id_file.exists():
        files.replace(local.id_file, local.run_id)
    checksums = {key: zlib.crc32(pieces.as_bytes(x)) for key, x in copied.items()}
    header = manifest.seal(meta | {"pieces": pieces.rows(copied, checksums)})
    folder = local.folder / str(local.me) / meta["name"]
    pieces.write(folder, f"own_{local.me}", header, (pieces.as_bytes(x) for x in copied.values()))
    if jax.process_count() == 1:
        return
    sent = {key: x for key, x in copied.items() if key in unshared}
    header = manifest.seal(meta | {"pieces": pieces.rows(sent, checksums)})
    other = exchange.partner(local.hosts, local.me)
    request = {"keep": f"copy_{local.me}", "name": meta["name"], "header": header, "bytes": pieces.size(header)}
    try:
        local.door.ask(other, request, (pieces.as_bytes(x) for x in sent.values()))
    except OSError as error:
        said = f"process {other} on {local.hosts[other]} could not keep the copy: {error.strerror or error}"
        raise OSError(0, said) from error


def _clean(local: Local, step: int, whole: bool) -> None:
    """Deletes the saves that the one of `step` replaces, those of processes that ran here before included."""
    for folder in local.folder.glob("*/*"):
        found = NAME.fullmatch(folder.name)
        if not found:
            continue
        number, ours = int(found[1]), found[2] == local.attempt
        if (ours and number < step and number != local.last) or (whole and not ours):
            shutil.rmtree(folder, ignore_errors=True)


def close(local: Local, shared: int, failed: bool) -> None:
    """Deletes what the shared checkpoint of step `shared` makes useless.

    failed: an exception ends the run, and a save that is still being written is not waited for.
    """
    if not failed:
        wait(local)
    if local.thread is None or not local.thread.is_alive():
        for folder in local.folder.glob("*/*"):
            found = NAME.fullmatch(folder.name)
            if found and int(found[1]) <= shared:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (*local.folder.glob("*"), local.folder):
            with contextlib.suppress(OSError):  # it is not empty, or another process was first
                folder.rmdir()
    local.door.close()
