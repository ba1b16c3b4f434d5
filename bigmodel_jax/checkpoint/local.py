"""Local saves: each process writes its shards to its host's disk or memory, and another host keeps
a copy.

`<local_dir>/<run>/<process>/<step>.<attempt>/` holds the files of pieces.py: `own_<p>` of that
process, and `copy_<p>` of the process whose copy it keeps. <run> is a hash of the run's folder and
of a number stored in it, so the saves of other runs are never found. <attempt> differs at each
start, so that no save is assembled from two starts. A step is complete if the pieces of every
process exist on some host.

The training loop waits only while shards are copied to host memory. A thread does the rest. Older
saves are deleted only when every process has written its pieces and their copy.
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

NAME = re.compile(r"(\d+)\.([0-9a-f]{8})")  # the name of a step's folder
# The stem of a file of pieces.
FILE = re.compile(r"(own|copy)_(\d+)")

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Local:
    """The local saves of one run, as one process of it sees them."""

    layout: str  # the mesh and the number of processes, as a text
    id_file: Path  # the file in the run's folder that holds run_id
    run_id: str = ""
    attempt: str = ""
    folder: Path = Path()  # the folder of this run on this host
    hosts: list[str] = dataclasses.field(default_factory=list)  # the host of every process
    door: exchange.Exchange | None = None
    held: dict[int, dict] = dataclasses.field(
        default_factory=dict
    )  # complete: {step: {name, where: {file: [process]}}}
    thread: threading.Thread | None = None
    last: int = -1  # the newest step that this attempt has saved completely
    trouble: dict[int, str] = dataclasses.field(default_factory=dict)  # errors of the last save, by process
    headers: dict[tuple[str, str], dict] = dataclasses.field(default_factory=dict)  # headers of files that were read
    unshared: dict[tuple, frozenset] = dataclasses.field(default_factory=dict)  # cache of _unshared

    @property
    def me(self) -> int:
        return jax.process_index()


# ---------------------------------------------------------------- save


def save(local: Local, step: int, state: Any, data_state: dict, config: dict) -> None:
    """Starts a local save. Returns when the shards are in host memory, so the arrays may be
    donated.

    It first waits for the previous save. A failed save logs one warning, and the run goes on.
    """
    wait(local)
    flat = {path: plain(x) for path, x in manifest.flatten(state).items()}
    meta = {"name": f"{step}.{local.attempt}", "step": step, "config": config, "data_state": data_state}
    meta |= {"layout": local.layout, "leaves": {path: manifest.describe(x) for path, x in flat.items()}}
    unshared = frozenset().union(*(_unshared(local, i, x) for i, x in enumerate(flat.values())))
    copied = _to_host(list(flat.values()))
    # The thread gets only host copies, so the next step may overwrite the device arrays.
    local.thread = threading.Thread(
        target=_finish, args=(local, step, meta, copied, unshared), name="local save", daemon=True
    )
    local.thread.start()


def steps(local: Local) -> list[int]:
    """The steps that were complete when the run started, ascending, the same in every process."""
    return sorted(local.held)


def wait(local: Local) -> None:
    """Returns when every process has written the last save, or when it has failed."""
    if local.thread is not None:
        local.thread.join()
        local.thread = None


def plain(x: jax.Array) -> jax.Array:
    """`x` or, for random keys, the integers that they consist of."""
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _to_host(leaves: list[jax.Array]) -> dict[pieces.Key, np.ndarray]:
    """A copy of every distinct shard of this process.

    The next step overwrites the arrays' memory.
    """
    shards = {}
    for leaf, x in enumerate(leaves):
        for shard in x.addressable_shards:
            shards.setdefault(pieces.key(leaf, shard.index, x.shape), shard.data)
    for data in shards.values():
        data.copy_to_host_async()
    return {key: _copied(data) for key, data in shards.items()}


def _copied(data: jax.Array) -> np.ndarray:
    """One shard copied into memory of its own."""
    (device,) = data.devices()
    if device.platform != "cpu" and data.sharding.memory_kind == device.default_memory().kind:
        return np.asarray(data, order="C")  # this copies from the device
    # On a CPU np.asarray would return a view of the array's own memory.
    return np.array(data, order="C", copy=True)


def _unshared(local: Local, leaf: int, x: jax.Array) -> frozenset[pieces.Key]:
    """The shards of `x` on this process that no other host has."""
    if jax.process_count() == 1:
        return frozenset()
    names = local.hosts if len(set(local.hosts)) > 1 else range(len(local.hosts))
    known = (leaf, x.sharding, x.shape)
    if known not in local.unshared:
        hosts: dict[pieces.Key, set] = {}
        for device, index in x.sharding.devices_indices_map(x.shape).items():
            # Shards that another host holds as well need no copy.
            hosts.setdefault(pieces.key(leaf, index, x.shape), set()).add(names[device.process_index])
        local.unshared[known] = frozenset(key for key, found in hosts.items() if found == {names[local.me]})
    return local.unshared[known]


def _finish(local: Local, step: int, meta: dict, copied: dict[pieces.Key, np.ndarray], unshared: frozenset) -> None:
    """Does the part of a save that runs beside the training loop."""
    began = time.perf_counter()
    try:
        _write(local, meta, copied, unshared)
        text = ""
    except (OSError, ValueError) as error:
        text = f"{error.strerror}: {error.filename}" if getattr(error, "filename", None) else str(error)
        shutil.rmtree(local.folder / str(local.me) / meta["name"], ignore_errors=True)  # frees space on a full disk
    try:
        # All processes report before older saves are deleted, so one complete save always exists.
        trouble = processes.gather("local saved", meta["name"], text)
    except RuntimeError as error:
        log.info("checkpoint: the job ended before the local save of step %d: %s", step, manifest.reason(error))
        return
    if trouble:
        process, text = next(iter(trouble.items()))
        # Warn once per kind of failure, because a full disk fails many saves in a row.
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
    """Deletes the saves that the save of `step` replaces, including those of earlier attempts."""
    for folder in local.folder.glob("*/*"):
        found = NAME.fullmatch(folder.name)
        if not found:
            continue
        number, ours = int(found[1]), found[2] == local.attempt
        # If this save failed in some process, the last complete save must stay.
        if (ours and number < step and number != local.last) or (whole and not ours):
            shutil.rmtree(folder, ignore_errors=True)


def close(local: Local, shared: int, failed: bool) -> None:
    """Deletes the local saves that the shared checkpoint of step `shared` replaces.

    failed: whether an exception ends the run. A save that is still being written is then not
    awaited.
    """
    if not failed:
        wait(local)
    if local.thread is None or not local.thread.is_alive():
        for folder in local.folder.glob("*/*"):
            found = NAME.fullmatch(folder.name)
            if found and int(found[1]) <= shared:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (*local.folder.glob("*"), local.folder):
            with contextlib.suppress(OSError):  # not empty, or removed by another process
                folder.rmdir()
    local.door.close()
