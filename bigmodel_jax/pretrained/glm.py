"""GLM-4's tensor names and config.json.

The names are Llama's, with two exceptions: one tensor joins both input matrices of the MLP, and a
layer has two more norms.
"""

from bigmodel_jax.models.glm import Glm4Config
from bigmodel_jax.pretrained import llama
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types, rotary_dim_from_hf, rotary_dim_to_hf
from bigmodel_jax.pretrained.llama import check_plain, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.names import Row, linear

GATE_UP = Row(("layers/mlp/gate", "layers/mlp/up"), "model.layers.{i}.mlp.gate_up_proj.weight", linear())
ROWS = (
    *(row for row in llama.ROWS if row.ours not in GATE_UP.paths),
    GATE_UP,
    Row("layers/attn_post_norm/scale", "model.layers.{i}.post_self_attn_layernorm.weight"),
    Row("layers/mlp_post_norm/scale", "model.layers.{i}.post_mlp_layernorm.weight"),
)
# transformers' default is a token of the published vocabulary, which a smaller vocabulary lacks.
NO_PADDING = {"pad_token_id": None}


def from_hf(hf: dict) -> Glm4Config:
    """The Glm4Config that a config.json of transformers' Glm4ForCausalLM describes."""
    check_fixed(hf, hidden_act="silu")
    check_layer_types(hf)
    rotary_dim, whole = rotary_dim_from_hf(hf, hf["head_dim"], default=0.5)
    return Glm4Config(**sizes_from_hf(whole), rotary_dim=rotary_dim, qkv_bias=hf["attention_bias"])


def to_hf(cfg: Glm4Config) -> dict:
    """The config.json of transformers' Glm4ForCausalLM for this config.

    Raises ValueError for a window or norms of queries and keys.
    """
    check_plain(cfg, "glm4", "qkv_bias")
    rotary = rotary_dim_to_hf(cfg.rotary_dim, cfg.head_dim)
    return {"model_type": "glm4", **sizes_to_hf(cfg), **rotary, "attention_bias": cfg.qkv_bias, **NO_PADDING}


GLM4 = Family("Glm4ForCausalLM", Glm4Config, from_hf, to_hf, ROWS, llama.IGNORED, copies=llama.COPIES)
