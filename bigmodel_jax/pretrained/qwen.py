"""The config.json of Qwen2 and Qwen3. Their tensors have Llama's names.

Qwen2 has biases on queries, keys and values. Qwen3 has norms of queries and keys.
"""

import functools

from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.qwen import Qwen2Config, Qwen3Config
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types
from bigmodel_jax.pretrained.llama import COPIES, IGNORED, ROWS, sizes_from_hf, sizes_to_hf

# Keys about biases in config.json. Qwen2 always has biases, and its config.json has no key for
# them.
NO_BIAS = {"qwen2": {}, "qwen3": {"attention_bias": False}}


def from_hf(hf: dict, *, config: type[LlamaConfig], model_type: str) -> LlamaConfig:
    """The config that a config.json of transformers' Qwen2ForCausalLM or Qwen3ForCausalLM
    describes.

    config: our class; model_type: "qwen2" or "qwen3". Raises ValueError for sliding windows.
    """
    check_fixed(hf, hidden_act="silu", use_sliding_window=False, **NO_BIAS[model_type])
    check_layer_types(hf)
    # Reading the key makes `check_unread` accept it. It has no effect without use_sliding_window.
    hf.get("sliding_window")
    # Qwen3's default for head_dim is 128, whatever embed_dim and num_heads are.
    head_dim = {"head_dim": hf.get("head_dim", 128)} if model_type == "qwen3" else {}
    return config(**sizes_from_hf(hf) | head_dim)


def to_hf(cfg: LlamaConfig, *, model_type: str) -> dict:
    """The config.json of transformers' Qwen2ForCausalLM or Qwen3ForCausalLM for this config.

    Raises ValueError where the window, the biases or the norms are not those of `model_type`.
    """
    qwen3 = model_type == "qwen3"
    if cfg.window or (cfg.qkv_bias, cfg.qk_norm) != (not qwen3, qwen3):
        raise ValueError(
            f"model: a {model_type} has window = 0, qkv_bias = {not qwen3} and qk_norm = {qwen3}; "
            f"this one has {cfg.window}, {cfg.qkv_bias} and {cfg.qk_norm}"
        )
    return {"model_type": model_type, **sizes_to_hf(cfg), "use_sliding_window": False, **NO_BIAS[model_type]}


def family(architecture: str, config: type[LlamaConfig], model_type: str) -> Family:
    """The family of Qwen2 or of Qwen3. model_type: "qwen2" or "qwen3"."""
    read = functools.partial(from_hf, config=config, model_type=model_type)
    return Family(
        architecture, config, read, functools.partial(to_hf, model_type=model_type), ROWS, IGNORED, copies=COPIES
    )


QWEN2 = family("Qwen2ForCausalLM", Qwen2Config, "qwen2")
QWEN3 = family("Qwen3ForCausalLM", Qwen3Config, "qwen3")
