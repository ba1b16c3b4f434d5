"""Mistral's config.json. Its tensors have Llama's names."""

from bigmodel_jax.models.mistral import MistralConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types
from bigmodel_jax.pretrained.llama import COPIES, IGNORED, ROWS, sizes_from_hf, sizes_to_hf


def from_hf(hf: dict) -> MistralConfig:
    """The MistralConfig that a config.json of transformers' MistralForCausalLM describes."""
    # null means no window, and a missing key means the class's default.
    window = hf.get("sliding_window", 4096) or 0
    check_fixed(hf, hidden_act="silu")
    check_layer_types(hf, window)
    return MistralConfig(**sizes_from_hf(hf), window=window)


def to_hf(cfg: MistralConfig) -> dict:
    """The config.json of transformers' MistralForCausalLM for this config.

    Raises ValueError for biases or norms of queries and keys.
    """
    if cfg.qkv_bias or cfg.qk_norm:
        raise ValueError("model: a Mistral has no qkv_bias or qk_norm; use Qwen2Config or Qwen3Config")
    return {"model_type": "mistral", **sizes_to_hf(cfg), "sliding_window": cfg.window or None}


MISTRAL = Family("MistralForCausalLM", MistralConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
