"""Rotary frequencies and attention factors of transformers' ROPE_INIT_FUNCTIONS, for settings of
published models."""

import copy
import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500_000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "beta_fast": 32.0, "beta_slow": 1.0}
GPT_OSS = {"factor": 32.0, "rope_theta": 150_000.0, "truncate": False, "original_max_position_embeddings": 4096}

# name: (head_dim, max_position_embeddings, rope_parameters)
CASES = {
    "linear (Llama 2 at 16k)": (128, 16_384, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}),
    "linear (Gemma 3)": (256, 131_072, {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}),
    "llama3 (3.1 8B)": (128, 131_072, LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192}),
    "llama3 (3.2 1B)": (64, 131_072, LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}),
    "llama3, short": (16, 256, LLAMA3 | {"factor": 4.0, "original_max_position_embeddings": 64}),
    "yarn (Qwen2.5)": (
        128,
        131_072,
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1_000_000.0, "original_max_position_embeddings": 32_768},
    ),
    "yarn (DeepSeek-V3)": (
        64,
        163_840,
        YARN | {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "yarn, unequal mscales": (
        64,
        163_840,
        YARN | {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.7, "mscale_all_dim": 1.2},
    ),
    "yarn (gpt-oss)": (64, 131_072, YARN | GPT_OSS),
    "yarn, attention factor given": (
        32,
        4096,
        YARN | {"factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 1.3},
    ),
    "yarn, ramp of one dimension": (
        8,
        256,
        YARN | {"factor": 2.0, "original_max_position_embeddings": 8, "beta_fast": 2.0, "beta_slow": 1.0},
    ),
}

# name: (head_dim, the keys of a config.json): what is said in several places, or in other words.
KEYS = {
    "yarn, both ends of the ramp beyond the last dimension": (
        8,
        {
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 10.0, "factor": 4.0, "beta_fast": 1.0}
            | {"beta_slow": 0.5, "original_max_position_embeddings": 64_000},
        },
    ),
    "yarn, one of the two mscales": (
        16,
        {
            "max_position_embeddings": 64,
            "rope_parameters": YARN | {"factor": 4.0, "original_max_position_embeddings": 16, "mscale": 2.0},
        },
    ),
    "yarn, attention factor beside mscales": (
        16,
        {
            "max_position_embeddings": 64,
            "rope_parameters": YARN
            | {"factor": 4.0, "original_max_position_embeddings": 16, "mscale": 2.0, "mscale_all_dim": 0.5}
            | {"attention_factor": 0.7},
        },
    ),
    "yarn, the factor from the lengths": (
        16,
        {
            "max_position_embeddings": 96,
            "rope_parameters": YARN | {"factor": None, "original_max_position_embeddings": 16},
        },
    ),
    "yarn, two original lengths": (
        16,
        {
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 32,
            "rope_parameters": YARN | {"factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    "yarn, no original length": (16, {"max_position_embeddings": 64, "rope_parameters": YARN | {"factor": 4.0}}),
    "yarn, no end given and truncate null": (
        32,
        {
            "max_position_embeddings": 2048,
            "rope_theta": 500.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": None, "truncate": None}
            | {"original_max_position_embeddings": 512},
        },
    ),
    "rope_scaling before rope_parameters": (
        16,
        {
            "max_position_embeddings": 64,
            "rope_theta": 77.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
    ),
    "rope_parameters before an empty rope_scaling": (
        16,
        {
            "max_position_embeddings": 64,
            "rope_theta": 77.0,
            "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0},
            "rope_scaling": {},
        },
    ),
}
SAID = {
    n: (dim, {"max_position_embeddings": length, "rope_parameters": rope}) for n, (dim, length, rope) in CASES.items()
}


def write(folder: Path) -> None:
    found = []
    for name, (head_dim, keys) in (SAID | KEYS).items():
        hf = {"head_dim": head_dim, **keys}
        config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, **copy.deepcopy(hf))
        frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
        found.append({"name": name, "config": hf, "frequencies": frequencies.tolist(), "attention_factor": factor})
    (folder / "reference.json").write_text(json.dumps(found) + "\n")


ROPE = {"rope": write}
