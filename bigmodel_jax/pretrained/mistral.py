"""Mistral's config.json; its tensors are Llama's."""

from bigmodel_jax.models.mistral import MistralConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types
from bigmodel_jax.pretrained.llama import COPIES, IGNORED, ROWS, sizes_from_hf, sizes_to_hf


def from_hf(hf: dict) -> MistralConfig:
    window = hf.get("sliding_window", 4096) or 0
    check_fixed(hf, hidden_act="silu")
    check_layer_types(hf, window)
    return MistralConfig(**sizes_from_hf(hf), window=window)


def to_hf(cfg: MistralConfig) -> dict:
    if cfg.qkv_bias or cfg.qk_norm:
        raise ValueError("model: qkv_bias and qk_norm are not in a Mistral; use Qwen2Config or Qwen3Config")
    return {"model_type": "mistral", **sizes_to_hf(cfg), "sliding_window": cfg.window or None}


MISTRAL = Family("MistralForCausalLM", MistralConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
