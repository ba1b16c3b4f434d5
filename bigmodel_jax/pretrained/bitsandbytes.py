"""Linear layers in the forms of bitsandbytes, which transformers loads: NormalFloat4 in blocks, and int8 by rows.

A layer's weight X.weight (out, in) becomes, as `bitsandbytes.functional.quantize_4bit` and `Int8Params` keep it,

- nf4: X.weight (n / 2, 1) uint8, two codes a byte, of blocks of 64 in flat order; X.weight.absmax, the largest magnitude of
  each; X.weight.quant_map, the 16 levels; X.weight.quant_state.bitsandbytes__nf4, the facts as JSON;
- int8: X.weight (out, in) int8; X.SCB, the largest magnitude of each row; X.weight_format 0, row by row.

QLoRA (arXiv:2305.14314), LLM.int8() (arXiv:2208.07339).
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.core.storage import NF4
from bigmodel_jax.pretrained.family import Family

KINDS = ("nf4", "int8")
BLOCK = 64
TOP = 127
# The families whose layers transformers replaces by those of bitsandbytes, all of them and no other.
LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def check(kind: str, family: Family) -> None:
    """ValueError, one line, for a kind or a family that has no such form."""
    if kind not in KINDS:
        raise ValueError(f"--kind = {kind!r}{nearest(kind, KINDS)}; of huggingface these are known: {', '.join(KINDS)}")
    if family.architecture not in FAMILIES:
        raise ValueError(
            f"--kind = {kind!r}: {family.architecture} is not written in a form of bitsandbytes; written so are "
            f"{', '.join(FAMILIES)}"
        )


def settings(kind: str, dtype: str) -> dict[str, Any]:
    """config.json's `quantization_config`."""
    nf4 = kind == "nf4"
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": nf4,
        "load_in_8bit": not nf4,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": None,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
    }


def packed(kind: str, name: str, x: np.ndarray) -> Mapping[str, np.ndarray]:
    """The tensors by which `name` is published: itself, unless it is the weight of a linear layer."""
    if not LINEAR.fullmatch(name):
        return {name: x}
    dtype, x = x.dtype.name, x.astype(np.float32)
    return _nf4(name, x, dtype) if kind == "nf4" else _int8(name, x)


def _nf4(name: str, x: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    levels = np.asarray(NF4, np.float32)
    flat = np.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
    largest = np.abs(flat).max(axis=1)
    share = flat / np.where(largest > 0, largest, 1.0)[:, None]
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, share).astype(np.uint8).reshape(-1)[: x.size + x.size % 2]
    facts = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": list(x.shape)}
    return {
        name: (codes[::2] << 4 | codes[1::2])[:, None],
        f"{name}.absmax": largest,
        f"{name}.quant_map": levels,
        f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(facts).encode(), np.uint8),
    }


def _int8(name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    x = x.astype(np.float16).astype(np.float32)  # bitsandbytes quantises half-precision values
    largest = np.abs(x).max(axis=1)
    codes = np.round(x * (TOP / np.where(largest > 0, largest, 1.0))[:, None]).astype(np.int8)
    part = name.removesuffix(".weight")
    return {name: codes, f"{part}.SCB": largest, f"{part}.weight_format": np.array(0, np.uint8)}
