"""SmolLM3's config.json. Its tensors have Llama's names."""

from bigmodel_jax.models.smollm3 import SmolLM3Config, is_turned
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types, shown
from bigmodel_jax.pretrained.llama import COPIES, IGNORED, ROWS, check_plain, sizes_from_hf, sizes_to_hf

FIXED = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
# transformers' default is a token of the published vocabulary, which a smaller vocabulary lacks.
NO_PADDING = {"pad_token_id": None}


def from_hf(hf: dict) -> SmolLM3Config:
    """The SmolLM3Config that a config.json of transformers' SmolLM3ForCausalLM describes.

    Raises ValueError unless exactly every n-th layer lacks rotary positions.
    """
    check_fixed(hf, hidden_act="silu", **FIXED)
    check_layer_types(hf)
    # Reading the key makes `check_unread` accept it. It has no effect without use_sliding_window.
    hf.get("sliding_window")
    every, turned = hf["no_rope_layer_interval"], hf.get("no_rope_layers")
    depth = hf["num_hidden_layers"]
    if turned is not None:
        # transformers reads one entry per layer and ignores the interval. The interval is kept
        # where the entries agree with it.
        first = (*turned[:depth], 0).index(0) + 1
        every = every if min(every, depth + 1) == first else first
    cfg = SmolLM3Config(**sizes_from_hf(hf), nope_every=every)
    if turned is not None and turned[:depth] != is_turned(cfg).astype(int).tolist():
        raise ValueError(f"config.json: no_rope_layers = {shown(turned)} is not supported; supported: every n-th is 0")
    return cfg


def to_hf(cfg: SmolLM3Config) -> dict:
    """The config.json of transformers' SmolLM3ForCausalLM for this config."""
    check_plain(cfg, "smollm3")
    return {
        "model_type": "smollm3",
        **sizes_to_hf(cfg),
        **FIXED,
        **NO_PADDING,
        "no_rope_layers": is_turned(cfg).astype(int).tolist(),
        "no_rope_layer_interval": cfg.nope_every,
    }


SMOLLM3 = Family("SmolLM3ForCausalLM", SmolLM3Config, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
