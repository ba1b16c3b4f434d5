"""A Hugging Face folder: config.json, and the weights as one safetensors file or several with an index."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bigmodel_jax.config import nearest
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.pretrained import FAMILIES, names
from bigmodel_jax.pretrained.family import Family, spec_by_path
from bigmodel_jax.pretrained.names import Source, Tensor

WEIGHTS = "model.safetensors"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
SHARD_BYTES = 5 * 1024**3


def read_config(folder: Path) -> tuple[Family, ModelConfig]:
    """The family and the model config of a folder; ValueError where the architecture is not one of ours."""
    hf = _json(folder / "config.json")
    architecture = _architecture(hf)
    family = FAMILIES.get(architecture)
    if family is None:
        raise ValueError(
            f"{folder / 'config.json'}: architecture {architecture!r} is not supported"
            f"{nearest(architecture, FAMILIES)}; supported: {', '.join(FAMILIES)}"
        )
    try:
        return family, family.from_hf(hf)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'}: {error} is missing") from None


def _architecture(hf: dict) -> str:
    """The model's class, as transformers or as diffusers names it."""
    if hf.get("architectures"):
        return hf["architectures"][0]
    name = hf.get("_class_name", f"(none, model_type {hf.get('model_type')!r})")
    # Older files of PixArt name the class that several models shared.
    shared = name == "Transformer2DModel" and hf.get("norm_type") == "ada_norm_single"
    return "PixArtTransformer2DModel" if shared else name


def _json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a Hugging Face folder has one")
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def open_weights(folder: Path) -> Source:
    """Every tensor of a folder, unread; ValueError for a missing or damaged shard, or weights in pickles alone."""
    weights = next((w for w in (WEIGHTS, DIFFUSERS_WEIGHTS) if any(folder.glob(f"{w}*"))), WEIGHTS)
    index = f"{weights}.index.json"
    if (folder / index).is_file():
        files = sorted(set(_json(folder / index)["weight_map"].values()))
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: {index} names {', '.join(missing)}, which is not there")
    elif (folder / weights).is_file():
        files = [weights]
    else:
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
        hint = (
            f"; {', '.join(pickles)} is a pickle, which may run code and is never opened: load it with transformers "
            "and call save_pretrained(folder, safe_serialization=True)"
        )
        raise ValueError(f"{folder}: no {weights} and no {index}{hint if pickles else ''}")
    return {name: tensor for file in files for name, tensor in _open_file(folder / file)}


def _open_file(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None
    for name in file.keys():  # noqa: SIM118 - not a dict
        part = file.get_slice(name)
        dtype = DTYPES.get(part.get_dtype(), part.get_dtype())
        yield name, Tensor(tuple(part.get_shape()), dtype, lambda name=name: file.get_tensor(name))


def match_prefix(family: Family, source: Source) -> Source:
    """The tensors by their full names; some files leave out the prefix that the whole model would give."""
    for pattern, replacement in family.renamed:
        source = {re.sub(pattern, replacement, name): tensor for name, tensor in source.items()}
    if not family.prefix or any(name.startswith(family.prefix) for name in source):
        return source
    outside = {row.theirs for row in family.rows if not row.theirs.startswith(family.prefix)}
    return {name if name in outside else family.prefix + name: tensor for name, tensor in source.items()}


def load_params(family: Family, cfg: ModelConfig, source: Source, shardings: Mapping[str, Any], dtype: str) -> dict:
    """{path: jax.Array} on their shardings, one parameter at a time in host memory.

    ValueError names every tensor that is missing, too many or of another shape.
    """
    spec = spec_by_path(cfg)
    source = match_prefix(family, family.unpack(source) if family.unpack else source)
    names.check(family.rows, spec, cfg, source, family.ignored)
    out = {}
    for path in spec:
        array = names.to_ours(family.rows, spec, cfg, source, path).astype(dtype, copy=False)
        out[path] = jax.make_array_from_callback(array.shape, shardings[path], lambda index, a=array: a[index])
    return out


def save_params(family: Family, cfg: ModelConfig, params: Mapping[str, Any], folder: Path) -> None:
    """config.json and the weights in shards of at most 5 GiB; params by path, as numpy arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = next(iter(params.values())).dtype.name
    hf = family.to_hf(cfg)
    weights = DIFFUSERS_WEIGHTS if "_class_name" in hf else WEIGHTS
    if weights == WEIGHTS:
        hf = {"architectures": [family.architecture], **hf, "torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    tensors = names.to_theirs(family.rows, spec_by_path(cfg), cfg, params)
    shards, size = [{}], 0
    for name, array in tensors:
        if size and size + array.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    _write_shards(shards, folder, weights)


def _write_shards(shards: list[dict], folder: Path, weights: str) -> None:
    if len(shards) == 1:
        save_file(shards[0], folder / weights, metadata={"format": "pt"})
        return
    weight_map = {}
    for n, shard in enumerate(shards):
        file = re.sub(r"\.safetensors$", f"-{n + 1:05}-of-{len(shards):05}.safetensors", weights)
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for shard in shards for array in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{weights}.index.json").write_text(json.dumps(index, indent=2) + "\n")
