"""A run's constant parameters on disk, stored once, or not at all if another run stores them.

For each constant that another run stores, `<run>/constants.json` names that run's save, the leaf in
it, and a digest. Every start reads the values from that save. Other constants are copied:
`<run>/constants/0/` is one save of checkpoint/store.py, atomic and with a digest per leaf. Both can
be opened on every mesh.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax import config_file
from bigmodel_jax.checkpoint import leaves, manifest, store
from bigmodel_jax.config import CheckpointConfig, Config
from bigmodel_jax.core import files, formats, mirror, params, processes
from bigmodel_jax.training import tables
from bigmodel_jax.training.state import abstract_constants

FOLDER = "constants"
FILE = "constants.json"
ORDER = {"four_bits": "halves"}  # how two 4-bit numbers share a byte (core/storage.py); older runs paired neighbours
COPY_BYTES = 2**30  # most bytes of constants in the host's memory during a save
READ_BYTES = 2**28  # most bytes of another run that are read at a time, before they are stored in this run's form


class Place(NamedTuple):
    """The leaf of a save that holds a parameter. `shape` leaves out the vocabulary's
    padding rows.
    """

    directory: Path
    step: int
    leaf: str
    shape: tuple[int, ...]
    digest: int


Places = Mapping[str, Place]


# ---------------------------------------------------------------- another run's parameters


def places(config: Config, run_dir: Path, step: int) -> dict[str, Place]:
    """The places of the parameters that an evaluation of the run at `step` would use.

    Parameters that the run stores in blocks are left out.
    """
    shapes = tables.published(config)
    found = {}
    for directory, number in ((run_dir / "checkpoints", step), (run_dir / FOLDER, 0)):
        if mirror.origin(directory / str(number)).is_dir():
            described = leaves.describe(directory, number)
            averaged = any(leaf.startswith("ema/") for leaf in described)
            fields = ("ema" if averaged else "params", "frozen", FOLDER)
            for leaf, about in described.items():
                field, _, path = leaf.partition("/")
                if field in fields and path in shapes:
                    found[path] = Place(directory.absolute(), number, leaf, shapes[path], about.digest)
    return found | references(run_dir)


def read(config: Config, mesh, found: Places) -> dict[str, Any]:
    """Reads constants of this run from the saves that hold them: {path: node in this run's
    storage}.

    Raises a one-line ValueError.
    """
    spec, published = params.paths(config.make_model().spec), tables.published(config)
    wanted = params.paths(abstract_constants(config, mesh))
    values = {}
    for (directory, step), group in _by_save(found).items():
        about = leaves.describe(directory, step)
        shapes = {
            path: tables.laid(spec[path], about[place.leaf].shape, about[place.leaf].dtype, mesh, config.parallel)
            for path, place in group.items()
        }
        for part in _parts(shapes):
            arrays = leaves.read(directory, step, {group[path].leaf: shapes[path] for path in part})
            for path in part:
                # This cuts off the other run's padding rows, which this run may not have.
                x = arrays.pop(group[path].leaf)[tuple(map(slice, group[path].shape))]
                values[path] = tables.stored(spec[path], tables.resized(x, published[path], spec[path]), wanted[path])
    return values


def _by_save(found: Places) -> dict[tuple[Path, int], dict[str, Place]]:
    groups: dict[tuple[Path, int], dict[str, Place]] = {}
    for path, place in found.items():
        groups.setdefault((place.directory, place.step), {})[path] = place
    return groups


def _parts(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[list[str]]:
    """Splits the paths into parts of at most READ_BYTES, or of a single larger array."""
    part, size = [], 0
    for path, x in shapes.items():
        if part and size + x.size * x.dtype.itemsize > READ_BYTES:
            yield part
            part, size = [], 0
        part.append(path)
        size += x.size * x.dtype.itemsize
    if part:
        yield part


# ---------------------------------------------------------------- a run's folder


def keep(run_dir: Path, config: Config, constants: params.Tree, found: Places) -> None:
    """Writes the constants before the run's first checkpoint.

    It replaces what an earlier start without a save has left. `found` gives the places of the
    constants that lie in another run; of these constants, only the places are written. All
    processes call this together. Raises OSError if the files cannot be written.
    """
    if not constants:
        return
    # The other processes wait until the old files are gone, then all write together.
    if processes.first():
        files.remove_tree(mirror.origin(run_dir / FOLDER))
        (run_dir / FILE).unlink(missing_ok=True)
    processes.meet("constants")
    _copy(run_dir, config, constants, found)
    if found and processes.first():
        sources = [_entry(run_dir, *save, group) for save, group in _by_save(found).items()]
        files.replace(run_dir / FILE, json.dumps(formats.stamp() | {"sources": sources}, indent=1) + "\n")
    processes.meet("constants")


def _copy(run_dir: Path, config: Config, constants: params.Tree, found: Collection[str]) -> None:
    if copied := {path: x for path, x in params.paths(constants).items() if path not in found}:
        with store.open_store(run_dir / FOLDER, CheckpointConfig(), copy_bytes=COPY_BYTES) as saves:
            store.save(saves, 0, {FOLDER: params.from_paths(copied)}, ORDER, config_file.to_json(config))


# ---------------------------------------------------------------- saves of version 0.1.0


def repeated(config: Config) -> frozenset[str]:
    """The leaves that a save of version 0.1.0 holds in addition to the state."""
    spec = config.make_model().spec
    fixed = params.paths(params.of_kind(spec, spec, "constant"))
    return frozenset(f"{field}/{path}" for field in ("params", "ema") for path in fixed)


def keep_repeated(run_dir: Path, config: Config, constants: params.Tree) -> None:
    """Copies the constants of a run of version 0.1.0 to `constants/`, unless they are already
    there.

    All processes call this together.
    """
    if constants and not processes.from_first(_is_kept(run_dir)):
        _copy(run_dir, config, constants, references(run_dir))


def _is_kept(run_dir: Path) -> bool:
    return mirror.origin(run_dir / FOLDER / "0").is_dir()


def _repeated_places(run_dir: Path, wanted: Collection[str]) -> dict[str, Place]:
    """Where the newest save holds the parameters `wanted`; {} if it lacks some of them."""
    directory = (run_dir / "checkpoints").absolute()
    if not wanted or not mirror.origin(directory).is_dir():
        return {}
    step = leaves.newest(directory)
    described = leaves.describe(directory, step)
    found = {path: described.get(f"params/{path}") for path in wanted}
    if None in found.values():
        return {}
    return {path: Place(directory, step, f"params/{path}", leaf.shape, leaf.digest) for path, leaf in found.items()}


def _entry(run_dir: Path, directory: Path, step: int, group: Places) -> dict:
    said = {path: [place.leaf, list(place.shape), f"{place.digest:08x}"] for path, place in group.items()}
    beside = os.path.relpath(directory, run_dir.absolute())
    return {"folder": mirror.address(directory), "beside": beside, "step": step, "leaves": said}


def load(config: Config, run_dir: Path, mesh) -> params.Tree:
    """The run's constants, sharded over `mesh`.

    Raises a one-line ValueError if they are missing, changed or damaged.
    """
    wanted = params.paths(abstract_constants(config, mesh))
    if not wanted:
        return {}
    found = {path: place for path, place in references(run_dir).items() if path in wanted}
    if not _is_kept(run_dir):
        found |= _repeated_places(run_dir, wanted.keys() - found.keys())
    copied = params.from_paths({path: x for path, x in wanted.items() if path not in found})
    return params.merge(params.from_paths(read(config, mesh, found)), _copied(run_dir, copied))


def _copied(run_dir: Path, wanted: params.Tree) -> params.Tree:
    if not wanted:
        return {}
    folder = run_dir / FOLDER
    if not _is_kept(run_dir):
        raise ValueError(
            f"run_dir = {str(run_dir)!r}: {folder}, which holds the constant parameters of all checkpoints, or "
            f"{FILE}, which says where they lie, is gone; copy it back, or start another run"
        )
    with store.open_store(folder, CheckpointConfig()) as saves:
        found = store.restore_params(saves, {FOLDER: wanted}, 0)[FOLDER]
    # A uint8 leaf holds two 4-bit numbers a byte. ORDER says which of the two comes first.
    packed = any(x.dtype == jnp.uint8 for x in jax.tree.leaves(wanted))
    if packed and manifest.read(mirror.origin(folder / "0"))["data_state"] != ORDER:
        raise ValueError(f"{folder}: an older version packed its 4-bit constants in another order; start another run")
    return found


def references(run_dir: Path) -> dict[str, Place]:
    """The run's constants that lie in another run's folder.

    Raises a one-line ValueError if the other run has changed.
    """
    found = {}
    for entry in _entries(run_dir / FILE):
        directory, described = _opened(run_dir, entry)
        for path, (leaf, shape, digest) in entry["leaves"].items():
            found[path] = Place(directory, entry["step"], leaf, tuple(shape), int(digest, 16))
        lost = [p.leaf for p in found.values() if p.directory == directory and not _same(described.get(p.leaf), p)]
        if lost:
            raise ValueError(
                f"run_dir = {str(run_dir)!r}: step {entry['step']} of {directory} is not what this run started from: "
                f"{', '.join(lost[:3])}{f' and {len(lost) - 3} more' if len(lost) > 3 else ''} changed; put back what was "
                "there, or start another run"
            )
    return found


def _same(leaf: leaves.Leaf | None, place: Place) -> bool:
    return leaf is not None and leaf.digest == place.digest


def _entries(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        entries = formats.opened(json.loads(path.read_bytes()), path)["sources"]
        if all(_is_entry(entry) for entry in entries):
            return entries
    except formats.Unknown:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(
        f"{path}, which says where the run's constants lie, is damaged; copy it back, or start another run"
    )


def _is_entry(entry: dict) -> bool:
    texts = all(isinstance(entry[name], str) for name in ("folder", "beside")) and isinstance(entry["step"], int)
    return texts and all(
        isinstance(leaf, str) and all(type(n) is int for n in shape) and int(digest, 16) < 2**32
        for leaf, shape, digest in entry["leaves"].values()
    )


def _opened(run_dir: Path, entry: dict) -> tuple[Path, dict[str, leaves.Leaf]]:
    """Opens the other run's saves.

    It looks first at the path relative to this run, so that both folders may move together.
    """
    ways = [Path(os.path.normpath(run_dir.absolute() / entry["beside"])), mirror.folder(entry["folder"])]
    for directory in ways:
        if mirror.origin(directory / str(entry["step"])).is_dir():
            return directory, leaves.describe(directory, entry["step"])
    raise ValueError(
        f"run_dir = {str(run_dir)!r}: step {entry['step']} of {entry['folder']} is gone, from which this run takes its "
        f'constant parameters; put it back, or write where it lies now as "folder" into {run_dir / FILE}'
    )
