"""Rotary frequencies and attention factors of transformers' ROPE_INIT_FUNCTIONS, for settings of published models."""

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


def write(folder: Path) -> None:
    found = []
    for name, (head_dim, length, rope) in CASES.items():
        hf = {"head_dim": head_dim, "max_position_embeddings": length, "rope_parameters": rope}
        config = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, **hf)
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
        found.append({"name": name, "config": hf, "frequencies": frequencies.tolist(), "attention_factor": factor})
    (folder / "reference.json").write_text(json.dumps(found) + "\n")


ROPE = {"rope": write}
