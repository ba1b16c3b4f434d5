"""Granite's config.json. Its tensors have Llama's names."""

from bigmodel_jax.models.granite import GraniteConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types
from bigmodel_jax.pretrained.llama import COPIES, IGNORED, ROWS, check_plain, sizes_from_hf, sizes_to_hf

MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
FIXED = {"attention_bias": False, "mlp_bias": False}


def from_hf(hf: dict) -> GraniteConfig:
    """The GraniteConfig that a config.json of transformers' GraniteForCausalLM describes."""
    check_fixed(hf, hidden_act="silu", **FIXED)
    check_layer_types(hf)
    return GraniteConfig(**sizes_from_hf(hf), **{name: float(hf[name]) for name in MULTIPLIERS})


def to_hf(cfg: GraniteConfig) -> dict:
    """The config.json of transformers' GraniteForCausalLM for this config."""
    check_plain(cfg, "granite")
    multipliers = {name: getattr(cfg, name) for name in MULTIPLIERS}
    return {"model_type": "granite", **sizes_to_hf(cfg), **FIXED, **multipliers}


GRANITE = Family("GraniteForCausalLM", GraniteConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
