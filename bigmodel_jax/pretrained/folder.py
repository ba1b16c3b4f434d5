"""Reads and writes a Hugging Face folder: config.json, and safetensors files with an index if
several.
"""

import collections
import dataclasses
import functools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bigmodel_jax.core import device_memory, params
from bigmodel_jax.core.params import Param
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.pretrained import FAMILIES, bitsandbytes, config_json, names
from bigmodel_jax.pretrained.family import Family, spec_by_path
from bigmodel_jax.pretrained.kin import hint
from bigmodel_jax.pretrained.names import Piece, Source, Tensor

WEIGHTS = "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
# numpy has no 8-bit floats, so safetensors cannot return these tensors as numpy arrays.
FLOAT8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}
SHARD_BYTES = 5 * 1024**3

log = logging.getLogger(__name__)


def read_config(folder: Path) -> tuple[Family, ModelConfig]:
    """The family and the model config of a folder; ValueError where either is not supported."""
    hf = config_json.with_generation(config_json.read_table(folder / "config.json"), folder)
    architecture = _architecture(hf)
    family = FAMILIES.get(architecture)
    if family is None:
        raise ValueError(
            f"{folder / 'config.json'}: architecture {architecture!r} is not supported"
            f"{hint(architecture, FAMILIES)}; supported: {', '.join(FAMILIES)}"
        )
    try:
        config = family.from_hf(hf)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'}: {error} is missing") from None
    config_json.check_unread(family, hf)
    config_json.check_fields(config)
    return family, config


def _architecture(hf: dict) -> str:
    """The model's class: "architectures" in transformers' files, "_class_name" in diffusers'."""
    if hf.get("architectures"):
        return hf["architectures"][0]
    name = hf.get("_class_name", f"(none, model_type {hf.get('model_type')!r})")
    # Older PixArt files name a class of diffusers that several models shared.
    shared = name == "Transformer2DModel" and hf.get("norm_type") == "ada_norm_single"
    return "PixArtTransformer2DModel" if shared else name


def _shards(index: Path) -> list[str]:
    """The weight files that an index lists; ValueError for a name outside the folder."""
    weight_map = config_json.read_table(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: weight_map is no table of tensors and the files that hold them")
    if outside := [name for name in weight_map.values() if name != Path(name).name]:
        raise ValueError(f"{index}: the shard {outside[0]!r} is no file of this folder, and is not read")
    return sorted(set(weight_map.values()))


def open_weights(folder: Path) -> Source:
    """Every tensor of a folder by name, unread.

    Raises ValueError for a missing or damaged shard, and for pickles, which are never opened.
    """
    weights = next((w for w in (WEIGHTS, DIFFUSERS_WEIGHTS) if any(folder.glob(f"{w}*"))), WEIGHTS)
    index = f"{weights}.index.json"
    if (folder / index).is_file():
        files = _shards(folder / index)
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise ValueError(f"{folder}: {index} names {', '.join(missing)}, which is not there")
        if (folder / weights).is_file() and weights not in files:  # transformers reads this file alone
            raise ValueError(f"{folder}: it holds {weights} and {index} with other files; keep one of both")
    elif (folder / weights).is_file():
        files = [weights]
    else:
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
        hint = (
            f"; {', '.join(pickles)} is a pickle, which may run code and is never opened: load it with transformers "
            "and call save_pretrained(folder, safe_serialization=True)"
        )
        raise ValueError(f"{folder}: no {weights} and no {index}{hint if pickles else ''}")
    found = [pair for file in files for pair in open_file(folder / file)]
    if twice := [name for name, count in collections.Counter(name for name, _ in found).items() if count > 1]:
        raise ValueError(f"{folder}: {', '.join(twice[:5])}: two of its files hold it; keep one of both")
    return dict(found)


def open_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, unread tensor) for each tensor of a safetensors file.

    ValueError if it is damaged.
    """
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None
    for name in file.keys():  # noqa: SIM118 - not a dict
        part = file.get_slice(name)
        kind, shape = part.get_dtype(), tuple(part.get_shape())
        if kind in FLOAT8:
            read = functools.partial(_read_float8, path, name, np.dtype(FLOAT8[kind]), shape)
            yield name, Tensor(shape, np.dtype(FLOAT8[kind]).name, read)
        else:
            yield name, Tensor(shape, DTYPES.get(kind, kind), functools.partial(file.get_tensor, name))


def _read_float8(path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a tensor of 8-bit floats, read straight from the file.

    The file begins with the header's length in 8 bytes. The header is JSON and gives each tensor's
    byte range, counted from the header's end.
    """
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(8)
        begin, end = json.loads(file.read(start - 8))[name]["data_offsets"]
        file.seek(start + begin)
        return np.frombuffer(file.read(end - begin), dtype).reshape(shape)


def leave_out(family: Family, source: Source) -> Source:
    """The tensors without those of model parts that ours does not have, which the log names."""
    out = [name for name in source if any(re.fullmatch(pattern, name) for pattern in family.left_out)]
    if out:
        parts = collections.Counter(re.match(r"(?:model\.)?\w+", name)[0] for name in out)
        named = ", ".join(f"{part} ({count} tensors)" for part, count in sorted(parts.items()))
        log.warning("left out, since %s has no such part: %s", family.config.__name__, named)
    return {name: tensor for name, tensor in source.items() if name not in set(out)}


def match_prefix(family: Family, source: Source) -> Source:
    """The tensors by their full, current names; ValueError for a tensor that has two names."""
    for pattern, replacement in family.renamed:
        now = {name: re.sub(pattern, replacement, name) for name in source}
        if twice := [name for name, count in collections.Counter(now.values()).items() if count > 1]:
            raise ValueError(
                f"weights: the files hold {', '.join(twice)} twice, once under an older name; keep one of both"
            )
        source = {now[name]: tensor for name, tensor in source.items()}
    # Some files leave the family's prefix out of every name.
    if not family.prefix or any(name.startswith(family.prefix) for name in source):
        return source
    outside = {row.theirs for row in family.rows if not row.theirs.startswith(family.prefix)}
    return {name if name in outside else family.prefix + name: tensor for name, tensor in source.items()}


def check_weights(family: Family, cfg: ModelConfig, source: Source) -> Source:
    """The tensors by the family's names.

    ValueError, one line, unless they are exactly the config's tensors.
    """
    params.check_sizes(cfg.make().spec)
    source = leave_out(family, match_prefix(family, family.unpack(source) if family.unpack else source))
    names.check(family.rows, spec_by_path(cfg), cfg, source, family.ignored)
    return source


def check_copies(family: Family, cfg: ModelConfig, source: Source) -> None:
    """Raises ValueError for a copied tensor that differs from its origin (`Family.copies`).

    The reference computes with the copy. Our model has one parameter for both and would lose the
    copy.
    """
    used = {piece.name for piece in names.pieces(family.rows, spec_by_path(cfg), cfg)}
    for copy, origin in family.copies:
        computed = callable(origin)
        if copy not in source or copy in used or not (computed or origin in used):
            continue
        if not _same(source[copy].read(), origin(cfg) if computed else source[origin].read(), exact=not computed):
            said = "the positions that the model computes" if computed else origin
            choice = any(field.name == "tied_embeddings" for field in dataclasses.fields(cfg))
            untied = choice and any(row.theirs == copy for row in family.rows)
            way = '; with "tie_word_embeddings": false in config.json both are read' if untied else ""
            raise ValueError(f"weights: {copy} differs from {said}, and the model has one parameter for both{way}")


def _same(a: np.ndarray, b: np.ndarray, *, exact: bool) -> bool:
    """Whether two tensors are equal: bit by bit (exact), or within 1e-2 for half precision."""
    if a.dtype != b.dtype:
        a, b = a.astype(np.float32), b.astype(np.float32)
    return np.array_equal(a, b) if exact else a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-2)


def load_params(family: Family, cfg: ModelConfig, source: Source, shardings: Mapping[str, Any], dtype: str) -> dict:
    """Reads the weights as {path: jax.Array}, each array with its sharding.

    One parameter at a time is in host memory, and only the part of it that this process needs.

    ValueError names every tensor that is missing, superfluous or of another shape. It is also
    raised for values that are not finite and for weights that do not fit on the devices.
    """
    published = unpadded(cfg)
    spec, own, source = spec_by_path(published), spec_by_path(cfg), check_weights(family, published, source)
    _check_room(cfg, own, shardings, dtype)
    check_copies(family, published, source)
    out = {}
    # Tables in `own` have rows that pad the vocabulary. Files lack these rows, so they are zeros.
    for path, param in own.items():
        shape = spec[path].shape
        where = shardings[path].addressable_devices_indices_map(param.shape).values()
        inside = {index: _inside(index, shape) for index in where}
        parts = names.to_ours(family.rows, spec, cfg, source, path, set(inside.values()), dtype)
        whole = {index: _filled_up(parts[cut], index, param.shape) for index, cut in inside.items()}
        out[path] = jax.make_array_from_callback(param.shape, shardings[path], whole.__getitem__)
        # `bool` waits for the devices, so the copies of at most one parameter are under way.
        if not bool(jnp.isfinite(out[path]).all()):
            raise ValueError(f"weights: the tensors of {path} hold values that are not finite")
    return out


def _check_room(cfg: ModelConfig, own: Mapping[str, Any], shardings: Mapping[str, Any], dtype: str) -> None:
    """Raises ValueError where the weights do not fit in the devices' memory."""
    shapes = {path: jax.ShapeDtypeStruct(p.shape, dtype, sharding=shardings[path]) for path, p in own.items()}
    what = f"the weights of {type(cfg).__name__} ({sum(p.size for p in own.values()):,} parameters)"
    mesh = Mesh(np.array(list(next(iter(shardings.values())).device_set)), ("all",))
    device_memory.check(what, shapes, mesh, "more {more} with --parallel.fsdp, --dtype bfloat16", copies=False)


def _inside(index: names.Index, shape: tuple[int, ...]) -> names.Index:
    """The part `index` of a padded parameter, clipped to the unpadded tensor of this shape."""
    return tuple(
        slice(min(s.start or 0, n), n if s.stop is None else min(s.stop, n)) for s, n in zip(index, shape, strict=True)
    )


def _filled_up(part: np.ndarray, index: names.Index, shape: tuple[int, ...]) -> np.ndarray:
    """A part of a parameter, with zeros in the rows that pad the vocabulary (`model.pad_vocab`)."""
    missing = [(0, len(range(n)[s]) - have) for n, s, have in zip(shape, index, part.shape, strict=True)]
    return np.pad(part, missing) if any(more for _, more in missing) else part


def save_params(
    family: Family,
    cfg: ModelConfig,
    params: Mapping[str, Any],
    folder: Path,
    spec: Mapping[str, Param] | None = None,
    kind: str = "",
) -> None:
    """Writes config.json and the weights in shards of at most 5 GiB, one of them in host memory at
    a time.

    params: numpy or jax arrays by path, all of one dtype. spec: the parameters, where they are not
    the model's own (a reward head). kind: the bitsandbytes format of linear layers, or "".
    """
    if kind:
        bitsandbytes.check(kind, family)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(next(iter(params.values())).dtype)
    hf = family.to_hf(cfg)
    weights = DIFFUSERS_WEIGHTS if "_class_name" in hf else WEIGHTS
    if weights == WEIGHTS:
        hf = {"architectures": [family.architecture], **hf, "torch_dtype": dtype.name}
    if kind:
        hf["quantization_config"] = bitsandbytes.settings(kind, dtype.name)
    (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    spec = spec or spec_by_path(cfg)
    # Every tensor gets its shard before any file is written, since file names hold the number of
    # shards.
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece in names.pieces(family.rows, spec, cfg):
        size = names.num_elements(piece, spec) * dtype.itemsize  # before `kind` makes it smaller
        if filled and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += size
    weight_map, total_size = {}, 0
    computed = {name: make(cfg).astype(dtype) for name, make in family.computed}
    for n, shard in enumerate(shards):
        number = "" if len(shards) == 1 else f"-{n + 1:05}-of-{len(shards):05}"
        file = weights.replace(".safetensors", f"{number}.safetensors")
        tensors = {}
        for piece in shard:
            own = names.to_theirs(piece, params)
            tensors |= bitsandbytes.packed(kind, piece.name, own) if kind else {piece.name: own}
        tensors |= computed if n == len(shards) - 1 else {}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total_size += sum(x.nbytes for x in tensors.values())
        del tensors
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / f"{weights}.index.json").write_text(json.dumps(index, indent=2) + "\n")
