"""Writes a run's weights and tokenizer as one GGUF file, which llama.cpp runs.

The gguf package quantises matrices in blocks along their rows. Vectors stay float32. With a 4-bit
or 5-bit kind, the embedding table and the head keep 8 bits, as llama.cpp's own files keep them
wider.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_jax.config import Config
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers.tokenizers import load_tokenizer
from bigmodel_jax.export import gguf_metadata
from bigmodel_jax.export.subject import Written
from bigmodel_jax.nn.position import frequencies
from bigmodel_jax.pretrained import FAMILIES, gguf, names
from bigmodel_jax.pretrained.transfer import Published, published, published_weights
from bigmodel_jax.training.saved import CHAT_TEMPLATE

FILE = "model.gguf"
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
WIDE = ("token_embd", "output")  # tensors that are kept at 8 bits
HALF_LARGEST = 65504.0  # the largest finite float16


def write(config: Config, run_dir: Path, folder: Path, which: str, *, kind: str = "F16", adapter: str = "") -> Written:
    """Writes `folder`/model.gguf.

    kind: the type in which matrices are written, as the gguf package names it. Raises a ValueError
    of one line for a kind that the package cannot write, and for a model or tokenizer that no
    supported GGUF architecture can hold.
    """
    check_kind(kind)
    found = published_weights(config, run_dir, which=which, adapter=adapter)
    hf = found.family.to_hf(found.config)
    architecture = gguf.written_as(found.family, hf)
    keys = _keys(config, run_dir, found, hf, architecture, kind)
    _write(folder / FILE, architecture, keys, found, hf, kind)
    _check_same(folder / FILE, hf)
    return Written(f"{FILE}: {found.family.architecture} as {architecture}, {kind}", found.step)


def check_kind(kind: str) -> None:
    """Raises a ValueError of one line for an unknown kind, and for one that the package can only
    read.
    """
    quantize, kinds = _package()
    if kind not in KINDS:
        raise ValueError(f"--kind = {kind!r}{nearest(kind, KINDS)}; of gguf these are known: {', '.join(KINDS)}")
    try:
        quantize(np.zeros((1, 256), np.float32), kinds[kind])
    except NotImplementedError:
        raise ValueError(
            f"--kind = {kind!r}: the gguf package reads it and cannot write it; llama.cpp's llama-quantize makes it of a file "
            "of --kind F16; written here are F32, F16, BF16, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0"
        ) from None


def _package() -> tuple[Any, Any]:
    try:
        from gguf import GGMLQuantizationType, quantize
    except ImportError:
        raise ValueError("export: GGUF needs the package gguf: uv sync --extra pretrained") from None
    return quantize, GGMLQuantizationType


def _keys(config: Config, run_dir: Path, found: Published, hf: dict, architecture: str, kind: str) -> dict[str, Any]:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    path = run_dir / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"export: gguf: {run_dir} holds no tokenizer.json, and llama.cpp runs no model without a tokenizer"
        )
    template = run_dir / CHAT_TEMPLATE
    said = template.read_text() if template.is_file() else ""
    # A whole file of a K kind is small, medium or large (S, M, L). The usual one is medium.
    file_type = {"F32": "ALL_F32", **{k: f"MOSTLY_{k}_M" for k in ("Q5_K", "Q4_K", "Q3_K")}, "Q2_K": "MOSTLY_Q2_K"}
    return {
        "general.type": "model",
        "general.name": run_dir.resolve().name,
        "general.file_type": int(LlamaFileType[file_type.get(kind, f"MOSTLY_{kind}")]),
        "general.quantization_version": GGML_QUANT_VERSION,
        **gguf_metadata.sizes(hf, architecture),
        **gguf_metadata.vocabulary(load_tokenizer(path), hf["vocab_size"], said, path),
    }


def _write(path: Path, architecture: str, keys: dict[str, Any], found: Published, hf: dict, kind: str) -> None:
    """Writes the file with one tensor at a time in memory."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in keys.items():
        adders.get(type(value), writer.add_array)(key, value)
    # The header needs every tensor's size before any tensor is written. The size does not depend on
    # the values, so one row of zeros is quantised here instead of the whole tensor.
    for name, shape, used, _ in _tensors(found, hf, architecture, kind):
        data = _quantized(name, np.zeros((1, shape[-1]), np.float32), used)
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        # Quantised data is bytes. The writer takes its last size in bytes and derives the number of
        # values.
        sizes = (*shape[:-1], data.shape[-1]) if data.dtype == np.uint8 else shape
        writer.add_tensor_info(name, sizes, data.dtype, data.nbytes * rows, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, _, used, read in _tensors(found, hf, architecture, kind):
        writer.write_tensor_data(_quantized(name, read(), used))
    writer.close()


def _tensors(found: Published, hf: dict, architecture: str, kind: str) -> Iterator[tuple]:
    """Yields (name, shape, type, function that reads the values) for every tensor of the file."""
    kinds = _package()[1]
    scaling = found.config.rope_scaling
    if scaling.kind == "llama3":
        # llama.cpp reads Llama 3's scaling as one factor for each rotary frequency.
        head_dim, theta = found.config.head_dim, found.config.rope_theta
        # The bound at 1 removes rounding errors: a factor only ever lowers a frequency.
        factors = np.maximum(frequencies(head_dim, theta) / frequencies(head_dim, theta, scaling), 1.0)
        yield gguf.ROPE_FACTORS, factors.shape, kinds.F32, lambda: factors
    heads = {"attn_q": hf["num_attention_heads"], "attn_k": hf["num_key_value_heads"]}
    for piece in names.pieces(found.family.rows, found.spec, found.config):
        name = gguf.gguf_name(piece.name)
        shape = names.joined_shape(names.their_shapes(piece, found.spec), piece.row.axis)
        # Rows of q and k are reordered to interleaved rotary pairs, separately for each head.
        turned = heads.get(name.split(".")[-2]) if architecture in gguf.PERMUTED else None

        def read(piece=piece, turned=turned) -> np.ndarray:
            x = names.to_theirs(piece, found.weights)
            return np.ascontiguousarray(gguf.permute(x, turned) if turned else x)

        yield name, shape, kinds[_used(name, shape, kind)], read


def _used(name: str, shape: tuple[int, ...], kind: str) -> str:
    """The type in which one tensor is written. kind: the type that the user chose for matrices."""
    if len(shape) < 2:
        return "F32"
    if kind[0] == "Q" and kind != "Q8_0" and name.split(".")[0] in WIDE:
        kind = "Q8_0"
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    # A quantised row consists of whole blocks.
    if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] == 0:
        return kind
    return "Q8_0" if shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0][0] == 0 else "F16"


def _quantized(name: str, x: np.ndarray, kind: Any) -> np.ndarray:
    quantize, kinds = _package()
    if kind == kinds.F16 and np.abs(x).max(initial=0.0) > HALF_LARGEST:
        raise ValueError(
            f"export: gguf: {name} holds values beyond the range of float16; --kind BF16 or F32 keeps them"
        )
    return quantize(x, kind)


def _check_same(path: Path, hf: dict) -> None:
    """Raises ValueError where the file reads back as another model.

    That happens where GGUF has no key for something that config.json states.
    """
    found = gguf.open_gguf(path)
    wanted = FAMILIES[found.family.architecture].from_hf(hf)
    ours, theirs = (dataclasses.asdict(published(config)) for config in (wanted, found.config))
    if wrong := [name for name, value in ours.items() if theirs[name] != value]:
        raise ValueError(
            f"export: gguf: a GGUF file cannot state {wrong[0]} = {ours[wrong[0]]!r} of {type(wanted).__name__}"
        )
