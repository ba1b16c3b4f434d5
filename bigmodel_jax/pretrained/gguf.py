"""Reads a GGUF file (llama.cpp) as if it were a Hugging Face folder: config, tensors and tokenizer.

The tensors get their names in a Hugging Face folder. The `gguf` package dequantises quantised
tensors to float32 when they are read.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.tokenizers import special_tokens
from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens
from bigmodel_jax.data.tokenizers.tokenizer_files import from_gguf_metadata
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.pretrained import FAMILIES, Family
from bigmodel_jax.pretrained.gguf_config import check_tokenizer, hf_config
from bigmodel_jax.pretrained.names import Source, Tensor

# general.architecture of a file -> the family whose tensor names and config keys the reader uses.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Family -> general.architecture of the file that an export writes. A Mistral without a window is
# written as a Llama.
WRITTEN = {theirs: ours for ours, theirs in ARCHITECTURES.items()} | {"MistralForCausalLM": "llama"}
# Architectures that are read from a Hugging Face folder but not from a GGUF file.
FOLDERS = {
    "bert": "BertModel",
    "deepseek2": "DeepseekV3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "t5": "T5ForConditionalGeneration",
}
# llama.cpp's converter reorders the rows of q and k of these architectures, so that rotary pairs
# are interleaved.
PERMUTED = {"llama"}
ROPE_FACTORS = "rope_freqs.weight"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PARTS = {theirs: ours for ours, theirs in NAMES.items()}


class Opened(NamedTuple):
    """What a GGUF file holds. source: its tensors by Hugging Face names, unread.

    tokenizer: a tokenizers.Tokenizer; chat_template: Jinja text, or empty; special: the special
    tokens.
    """

    family: Family
    config: ModelConfig
    source: Source
    tokenizer: Any
    chat_template: str
    special: SpecialTokens


def open_gguf(path: Path) -> Opened:
    """Opens a GGUF file without reading its tensors.

    Raises ValueError for a damaged file, and for an unsupported architecture, quantisation or
    metadata key.
    """
    reader = _reader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    architecture = metadata.get("general.architecture")
    family = FAMILIES.get(ARCHITECTURES.get(str(architecture), ""))
    if family is None:
        raise ValueError(
            f"{path}: architecture {architecture!r} is not supported{_way_out(str(architecture))}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    check_tokenizer(metadata, path)
    tensors = {t.name: t for t in reader.tensors}
    # llama.cpp's converter writes Llama 3.1's rotary scaling as a tensor instead of metadata.
    factors = _factors(path, tensors.pop(ROPE_FACTORS)) if architecture == "llama" and ROPE_FACTORS in tensors else None
    try:
        config = family.from_hf(hf_config(metadata, tied="output.weight" not in tensors, factors=factors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if architecture in PERMUTED else {}
    _check_names(path, tensors)
    source = dict(_tensor(path, t, heads) for t in tensors.values())
    tokenizer, template = from_gguf_metadata(metadata, path), metadata.get("tokenizer.chat_template", "")
    return Opened(family, config, source, tokenizer, template, special_tokens.from_gguf(metadata))


def _way_out(architecture: str) -> str:
    """The end of the message for an unsupported architecture.

    It names the folder that can be read instead, or the supported name that was perhaps meant.
    """
    # gguf is an optional package, so it is imported where it is used.
    from gguf.constants import MODEL_ARCH_NAMES

    if architecture in FOLDERS:
        return f" in this form (its Hugging Face folder is: {FOLDERS[architecture]})"
    return "" if architecture in MODEL_ARCH_NAMES.values() else nearest(architecture, ARCHITECTURES)


def _reader(path: Path) -> Any:
    """The gguf package's reader of a file.

    Raises ValueError without the package or for a damaged file.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(f"{path}: GGUF needs the package gguf: uv sync --extra pretrained") from None
    try:
        return GGUFReader(path)
    # numpy and the package's enums raise these for damaged or missing bytes.
    except (ValueError, IndexError, OverflowError) as error:
        unknown = re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error))
        if unknown:
            raise ValueError(f"{path}: quantisation type {unknown[1]} is unknown to the gguf package") from None
        raise ValueError(f"{path}: not a GGUF file, or cut short ({error})") from None


def _part(name: str) -> tuple[str | None, str, str] | None:
    """(layer, part, "weight" or "bias") of a tensor's name, or None where no supported part has
    that name.
    """
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    return found.groups() if found and found[2] in NAMES else None


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Raises ValueError for tensors that no supported part of a model has, since none may be
    ignored.
    """
    strange = [name if name.isprintable() else repr(name) for name in names if not _part(name)]
    if strange:
        raise ValueError(f"{path}: {', '.join(strange)} has no place in this model; supported: {', '.join(NAMES)}")


def _factors(path: Path, tensor: Any) -> np.ndarray:
    """The factors that divide the rotary frequencies, of shape (head_dim / 2,)."""
    return _tensor(path, tensor, {})[1].read()


def _tensor(path: Path, tensor: Any, heads: dict[str, int]) -> tuple[str, Tensor]:
    """(Hugging Face name, unread tensor) of one tensor of the file.

    heads: the number of heads for parts whose rows are reordered back.
    """
    from gguf.quants import _type_traits  # the package's table of types that `dequantize` supports

    kind = tensor.tensor_type
    if kind.name not in ("F32", "F16") and kind not in _type_traits:
        raise ValueError(f"{path}: {tensor.name} is quantised as {kind.name}, which the gguf package cannot dequantise")
    layer, part, suffix = _part(tensor.name) or (None, tensor.name, "weight")
    name = NAMES.get(part, part)
    name = f"model.layers.{layer}.{name}.{suffix}" if layer is not None else f"{name}.{suffix}"
    # GGUF lists dimensions from the fastest to the slowest, and numpy the other way round.
    shape = tuple(int(n) for n in reversed(tensor.shape))

    def read() -> np.ndarray:
        from gguf import dequantize

        array = np.asarray(dequantize(tensor.data, kind), np.float32).reshape(shape)
        return unpermute(array, heads[part]) if part in heads else array

    return name, Tensor(shape, "float32", read)


def written_as(family: Family, hf: dict[str, Any]) -> str:
    """Returns the value of the key general.architecture in the GGUF file of a family.

    hf: the config.json that the family would write. Raises a ValueError of one line where the
    family has no GGUF form.
    """
    if family.architecture not in WRITTEN:
        raise ValueError(
            f"export: gguf: {family.architecture} cannot be written as GGUF; allowed: {', '.join(WRITTEN)}"
        )
    if family.architecture == "MistralForCausalLM" and hf.get("sliding_window"):
        raise ValueError(
            f"export: gguf: sliding_window = {hf['sliding_window']} of {family.architecture}: llama.cpp's llama has no window"
        )
    return WRITTEN[family.architecture]


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of a Hugging Face folder. Raises KeyError for an unknown name."""
    found = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    layer, part, suffix = found.groups() if found else (None, name, "")
    return f"{f'blk.{layer}.' if layer is not None else ''}{PARTS[part]}.{suffix}"


def permute(x: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders rows (heads * head_dim, ...) from half-split to interleaved rotary pairs.

    Half-split pairs are (i, i + head_dim / 2), as transformers has them. Interleaved pairs are (2
    i, 2 i + 1), as llama.cpp has them. The inverse is `unpermute`.
    """
    # (heads, 2, head_dim / 2, ...) -> (heads, head_dim / 2, 2, ...)
    return x.reshape(num_heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def unpermute(x: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders rows (heads * head_dim, ...) from interleaved back to half-split rotary pairs."""
    # (heads, head_dim / 2, 2, ...) -> (heads, 2, head_dim / 2, ...)
    return x.reshape(num_heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
