"""The description that a checkpoint holds of itself, and the checks possible before arrays are
read.

The file `meta/data.json` is {"step", "config", "data_state", "leaves": {"params/layers/w":
"float32[64,32]", ...}, "format", "version", "crc32"}. The checksum crc32 covers the rest. The
digests follow the order of `leaves`.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import jax

from bigmodel_jax.core import formats


class Damaged(Exception):
    """Raised for a damaged checkpoint. The message says in a few words what is wrong."""


def flatten(tree: Any) -> dict[str, Any]:
    """{"opt_state/0/mu/layers/w": leaf}: paths of field names, dict keys and tuple indices."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def describe(x: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Dtype and shape as a text, such as "float32[64,32]"."""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def seal(meta: dict) -> dict:
    """`meta` with a format number and a checksum, in the form that JSON returns (tuples as
    lists)."""
    # The round trip through JSON makes the checksum cover what a reader will get.
    meta = json.loads(json.dumps(formats.stamp() | meta))
    return meta | {"crc32": _crc32(meta)}


def _crc32(meta: dict) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def read(folder: Path, name: str = "meta/data.json") -> dict:
    """The sealed `meta` of one step.

    Raises Damaged if it is not as it was written, and ValueError if a newer version wrote it.
    """
    if not any(folder.iterdir()):
        raise Damaged("empty folder")
    meta = _read_json(folder, name)
    if meta.pop("crc32", None) != _crc32(meta):
        raise Damaged(f"{name} has a wrong checksum")
    return formats.opened(meta, folder)


def _read_json(folder: Path, name: str) -> dict:
    try:
        value = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Damaged(f"{name} is not JSON: cut short or overwritten")
    return value


def check_files(folder: Path, fields: list[str]) -> None:
    """Raises Damaged with the name of a missing or damaged file. Orbax's own error would not name
    it."""
    for field in fields:
        if not (folder / field / "manifest.ocdbt").is_file():
            raise Damaged(f"{field}/manifest.ocdbt is missing")
        _read_json(folder, f"{field}/_METADATA")
        for file in (folder / field / "array_metadatas").glob("process_*"):
            _read_json(folder, f"{field}/array_metadatas/{file.name}")


def check_same_tree(
    folder: Path, flat: dict[str, Any], saved: dict[str, str], whole: bool, left: frozenset[str] = frozenset()
) -> None:
    """Raises ValueError with the names of the first leaves that differ from the saved tree.

    flat: the leaves wanted, by path. saved: the leaves in the save. whole: whether fields that
    `flat` lacks are an error. left: leaves that the save may hold and that are not read.
    """
    fields = {path.split("/")[0] for path in flat}
    here = {path: describe(x) for path, x in flat.items()}
    # Without `whole`, only the fields asked for are compared.
    there = {path: text for path, text in saved.items() if whole or path.split("/")[0] in fields}
    differences = {
        "it lacks": [path for path in here if path not in there],
        "it also has": [path for path in there if path not in here and path not in left],
        "other shape or dtype:": [f"{p} {there[p]}, here {here[p]}" for p in here if there.get(p, here[p]) != here[p]],
    }
    text = "; ".join(f"{what} {few(names)}" for what, names in differences.items() if names)
    if text:
        raise ValueError(f"checkpoint: {folder} was saved from another model or optimizer: {text}")


def few(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def reason(error: BaseException) -> str:
    """The root cause of `error` in one line of at most 300 characters, without TensorStore's
    options."""
    # Orbax wraps TensorStore's error several times. The innermost one has the reason.
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).split(" [tensorstore_spec")[0].replace('Error opening "cast" driver: ', "")
    text = " ".join(text.replace('Error opening "zarr3" driver: ', "").split())
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= 300 else text[:297] + "..."
