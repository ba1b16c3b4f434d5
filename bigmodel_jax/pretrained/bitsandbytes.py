"""Quantises linear layers to the formats of bitsandbytes, which transformers loads.

The formats are NormalFloat4 in blocks (nf4) and int8 by rows. A layer's weight X.weight (out, in)
becomes these tensors, as `bitsandbytes.functional.quantize_4bit` and `Int8Params` store them:

- nf4: X.weight (n / 2, 1) uint8 holds two codes a byte, from blocks of 64 values in flat order;
  X.weight.absmax holds the largest magnitude of each block; X.weight.quant_map holds the 16 levels;
  X.weight.quant_state.bitsandbytes__nf4 holds the format's settings as JSON.
- int8: X.weight (out, in) int8; X.SCB holds the largest magnitude of each row; X.weight_format is
  0, which means row by row.

Sources: QLoRA (arXiv:2305.14314) and LLM.int8() (arXiv:2208.07339).
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
# In these families transformers replaces exactly the layers that match LINEAR by those of
# bitsandbytes.
LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def check(kind: str, family: Family) -> None:
    """Raises a ValueError of one line for an unknown kind, or for a family that has no bitsandbytes
    form.
    """
    if kind not in KINDS:
        raise ValueError(f"--kind = {kind!r}{nearest(kind, KINDS)}; of huggingface these are known: {', '.join(KINDS)}")
    if family.architecture not in FAMILIES:
        raise ValueError(
            f"--kind = {kind!r}: {family.architecture} cannot be written in a form of bitsandbytes; allowed: "
            f"{', '.join(FAMILIES)}"
        )


def settings(kind: str, dtype: str) -> dict[str, Any]:
    """The `quantization_config` of config.json.

    kind: "nf4" or "int8"; dtype: what the layers compute in.
    """
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
    """The tensors that a file holds for the weight `name`: several tensors for a linear layer,
    otherwise the weight itself.
    """
    if not LINEAR.fullmatch(name):
        return {name: x}
    dtype, x = x.dtype.name, x.astype(np.float32)
    return _nf4(name, x, dtype) if kind == "nf4" else _int8(name, x)


def _nf4(name: str, x: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    levels = np.asarray(NF4, np.float32)
    flat = np.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
    largest = np.abs(flat).max(axis=1)
    # In a block of zeros the division by 1 avoids 0 / 0.
    share = flat / np.where(largest > 0, largest, 1.0)[:, None]
    # The nearest level is found from the midpoints between levels. If the number of values is odd,
    # one code of the padding stays and fills the last byte.
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, share).astype(np.uint8).reshape(-1)[: x.size + x.size % 2]
    facts = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": list(x.shape)}
    # Each byte holds two codes, the first one in its high bits.
    return {
        name: (codes[::2] << 4 | codes[1::2])[:, None],
        f"{name}.absmax": largest,
        f"{name}.quant_map": levels,
        f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(facts).encode(), np.uint8),
    }


def _int8(name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    x = x.astype(np.float16).astype(np.float32)  # bitsandbytes quantises half-precision values
    largest = np.abs(x).max(axis=1)
    # The scale is rounded twice, by the division and by the product, because torch computes it in
    # this way.
    scale = np.float32(1) / np.where(largest > 0, largest, np.float32(1)) * np.float32(TOP)
    codes = np.round(x * scale[:, None]).astype(np.int8)
    part = name.removesuffix(".weight")
    return {name: codes, f"{part}.SCB": largest, f"{part}.weight_format": np.array(0, np.uint8)}
