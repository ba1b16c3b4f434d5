"""Finds the complete local saves at the start of a run, and reads their shards."""

import hashlib
import json
import logging
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigmodel_jax.checkpoint import arrays, exchange, manifest, pieces
from bigmodel_jax.checkpoint.local import FILE, NAME, Local, plain
from bigmodel_jax.checkpoint.manifest import Damaged
from bigmodel_jax.core import mirror, processes
from bigmodel_jax.core.paths import expanded

RUN_ID = "run_id"  # the file in the run's folder that holds the run's number

log = logging.getLogger(__name__)


def open_local(directory: str, run_dir: Path, mesh: jax.sharding.Mesh, newer_than: int) -> Local:
    """Connects the processes and finds the complete local saves. All processes call it together.

    newer_than: the newest shared checkpoint. If a newer local save exists but cannot be used, a
    warning says why.
    """
    id_file = run_dir / RUN_ID
    axes = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    local = Local(f"{axes} in {_count(jax.process_count())}", id_file)
    local.door = exchange.Exchange(lambda request, body: _answer(local, request, body))
    mine = {"host": socket.gethostname(), "address": exchange.own_address(), "port": local.door.port}
    mine |= {"token": secrets.token_hex(16), "attempt": secrets.token_hex(4)}
    mine |= {"run_id": id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(8)}
    texts = processes.gather("local open", "", json.dumps(mine))
    everyone = [json.loads(texts[p]) for p in range(jax.process_count())]
    # Process 0 cannot know under which address the others reach it, but the coordinator's address
    # is known to all.
    everyone[0]["address"] = processes.coordinator_host()
    local.run_id, local.attempt, local.door.token = (everyone[0][name] for name in ("run_id", "attempt", "token"))
    local.hosts = [one["host"] for one in everyone]
    local.door.addresses = {p: (one["address"], one["port"]) for p, one in enumerate(everyone)}
    run = hashlib.sha256(f"{local.run_id} {mirror.address(run_dir.absolute())}".encode()).hexdigest()[:16]
    local.folder = expanded("checkpoint.local_dir", directory).absolute() / run
    texts = processes.gather("local held", local.attempt, json.dumps(_held_here(local.folder)))
    _choose(local, [json.loads(texts[p]) for p in range(jax.process_count())], newer_than)
    return local


def _count(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


# ---------------------------------------------------------------- which saves are there


def _held_here(folder: Path) -> dict[str, list]:
    """{"<step>.<attempt>": [[file, layout], ...]} of this host's files that have their recorded
    length."""
    found: dict[str, list] = {}
    for path in sorted(folder.glob("*/*/*.json")):
        if not NAME.fullmatch(path.parent.name) or not FILE.fullmatch(path.stem):
            continue
        try:
            header = pieces.read_header(path.parent, path.stem)
        except Damaged as error:
            log.info("checkpoint: a local save is damaged: %s: %s", path.parent, error)
            continue
        if header["name"] == path.parent.name:
            found.setdefault(path.parent.name, []).append([path.stem, header["layout"]])
    return found


def _choose(local: Local, here: list[dict[str, list]], newer_than: int) -> None:
    """Fills `held` with the complete steps; here: the result of `_held_here` in each process."""
    wrong = {}  # {step: why it cannot be used}
    for name in sorted({name for found in here for name in found}):
        step = int(name.partition(".")[0])
        where: dict[str, list[int]] = {}
        layouts = set()
        for process, found in enumerate(here):
            for file, layout in found.get(name, ()):
                where.setdefault(file, []).append(process)
                layouts.add(layout)
        # A step is complete if each process's pieces exist, as the original or as the copy.
        missing = [str(p) for p in range(len(here)) if not {f"own_{p}", f"copy_{p}"} & where.keys()]
        # Pieces are cut by the mesh, so a save fits only the mesh that it was made on.
        if others := sorted(layouts - {local.layout}):
            wrong[step] = f"it was made on {others[0]}, and this is {local.layout}"
        elif missing:
            wrong[step] = f"the pieces of process {manifest.few(missing)} are missing"
        else:
            local.held[step] = {"name": name, "where": where}
    instead = max([newer_than, *local.held])
    newer = max((step for step in wrong if step > instead), default=None)
    if newer is not None and processes.first():
        then = f"step {instead} is used" if instead >= 0 else "the run begins anew"
        log.warning("checkpoint: the local save of step %d cannot be used: %s; %s", newer, wrong[newer], then)


# ---------------------------------------------------------------- restore


def load(local: Local, step: int, abstract: Any, left: frozenset[str] = frozenset()) -> tuple[Any, dict]:
    """(tree like `abstract`, meta) of a complete step. Raises Damaged if a piece has no good copy.

    left: leaves that the save may hold and that are not read. Every process reads the pieces that
    its devices need, from its own host if they are there, and else from another process.
    """
    meta = _meta(local, step)
    flat = {path: arrays.placed(x) for path, x in manifest.flatten(abstract).items()}
    stored = {path: jax.eval_shape(plain, x) if _is_key(x) else x for path, x in flat.items()}
    manifest.check_same_tree(local.folder, stored, meta["leaves"], True, left)
    number = {path: n for n, path in enumerate(meta["leaves"])}
    broken: set[tuple[int, str]] = set()
    leaves = []
    for path, x in flat.items():
        array = _array(local, step, number[path], stored[path], x.sharding, broken)
        leaves.append(jax.random.wrap_key_data(array, impl=x.dtype._impl.name) if _is_key(x) else array)
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), meta


def _is_key(x: jax.ShapeDtypeStruct) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _array(local: Local, step: int, leaf: int, x: jax.ShapeDtypeStruct, sharding: Any, broken: set) -> jax.Array:
    found: dict[pieces.Key, np.ndarray] = {}
    for index in sharding.addressable_devices_indices_map(x.shape).values():
        key = pieces.key(leaf, index, x.shape)
        if key not in found:
            data = _piece(local, step, key, _owners(local, sharding, x.shape, key), broken)
            found[key] = np.frombuffer(data, x.dtype).reshape([stop - start for start, stop in key[1]])
    return jax.make_array_from_callback(
        x.shape, sharding, lambda index: found[pieces.key(leaf, index, x.shape)], dtype=x.dtype
    )


def _owners(local: Local, sharding: jax.sharding.Sharding, shape: tuple, key: pieces.Key) -> Iterator[int]:
    """The other processes that hold this shard.

    The list begins after this process, so that requests are spread.
    """
    indices = sharding.devices_indices_map(shape).items()
    found = {device.process_index for device, index in indices if pieces.key(key[0], index, shape) == key}
    yield from sorted(found - {local.me}, key=lambda p: (p - local.me) % len(local.hosts))


def _sources(local: Local, step: int, owners: Iterator[int]) -> Iterator[tuple[int, str]]:
    """(process, file) where a piece may be, nearest first."""
    where = local.held[step]["where"]
    for file in (f"own_{local.me}", f"copy_{local.me}"):
        # Files on this host first: False sorts before True.
        yield from sorted(((p, file) for p in where.get(file, ())), key=lambda source: source[0] != local.me)
    for owner in owners:
        yield from ((p, f"own_{owner}") for p in where.get(f"own_{owner}", ()))


def _piece(local: Local, step: int, key: pieces.Key, owners: Iterator[int], broken: set) -> bytes:
    """The bytes of one shard from the first source that has them; `broken`: sources that failed
    before.
    """
    name, reasons = local.held[step]["name"], []
    for source in _sources(local, step, owners):
        if source in broken:
            continue
        process, file = source
        try:
            if process == local.me:
                return _read(local, name, file, key)[1]
            request = {"give": file, "name": name, "leaf": key[0], "index": key[1]}
            reply, data = local.door.ask(process, request)
            pieces.check(file, data, reply["row"])
            return data
        except Damaged as error:
            reasons.append(str(error))
        except exchange.Refused as error:
            reasons.append(error.strerror)
        except OSError as error:
            # A process that cannot be reached once is not asked again.
            broken.add(source)
            reasons.append(f"process {process}: {error.strerror or error}")
    raise Damaged(reasons[0] if reasons else "a piece that this layout needs was not saved")


def _meta(local: Local, step: int) -> dict:
    """The description of a step, from the nearest of its files."""
    held, reasons = local.held[step], []
    for file, found in sorted(held["where"].items(), key=lambda item: local.me not in item[1]):
        try:
            if local.me in found:
                return _header(local, held["name"], file)[1]
            return local.door.ask(found[0], {"give": file, "name": held["name"]})[0]["header"]
        except (Damaged, OSError) as error:
            reasons.append(str(error))
    raise Damaged(reasons[0])


def _header(local: Local, name: str, file: str) -> tuple[Path, dict]:
    """The folder of a saved file on this host, and its header; Damaged if the host has none."""
    folder = next((path.parent for path in local.folder.glob(f"*/{name}/{file}.json")), None)
    if folder is None:
        raise Damaged(f"{file}.json is missing")
    if (name, file) not in local.headers:
        header = pieces.read_header(folder, file)
        local.headers[name, file] = header | {"by_key": pieces.by_key(header)}
    return folder, local.headers[name, file]


def _read(local: Local, name: str, file: str, key: pieces.Key) -> tuple[list, bytes]:
    folder, header = _header(local, name, file)
    if key not in header["by_key"]:
        raise Damaged(f"{file} does not hold a piece that this layout needs")
    row = header["by_key"][key]
    return row, pieces.read(folder, file, row)


# ---------------------------------------------------------------- what other processes ask


def _answer(local: Local, request: dict, body: Iterator[bytes]) -> tuple[dict, bytes]:
    """Answers a request: keeps another process's copy, or returns a piece or a header.

    Raises OSError on failure, which the exchange sends back.
    """
    name, file = request["name"], request.get("keep") or request["give"]
    if not NAME.fullmatch(name) or not FILE.fullmatch(file):
        raise OSError(0, "no such file", file)
    if "keep" in request:
        pieces.write(local.folder / str(local.me) / name, file, request["header"], body)
        return {}, b""
    try:
        if "leaf" not in request:
            return {"header": {k: v for k, v in _header(local, name, file)[1].items() if k != "by_key"}}, b""
        key = request["leaf"], tuple(tuple(span) for span in request["index"])
        row, data = _read(local, name, file, key)
    except Damaged as error:
        raise OSError(0, str(error), file) from error
    return {"row": row}, data
