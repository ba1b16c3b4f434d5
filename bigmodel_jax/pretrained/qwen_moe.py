"""Qwen3-MoE's tensor names and config.json. Its attention is Qwen3's, with Llama's names."""

from bigmodel_jax.models.qwen_moe import Qwen3MoeConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types
from bigmodel_jax.pretrained.llama import ATTENTION, COPIES, ENDS, IGNORED, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.mixtral import MLP_NORM, losses_from_hf, losses_to_hf
from bigmodel_jax.pretrained.names import Row, linear

EXPERT = "model.layers.{i}.mlp.experts.{e}"
ROWS = (
    *ENDS,
    *ATTENTION,
    MLP_NORM,
    Row("layers/router/kernel", "model.layers.{i}.mlp.gate.weight", linear()),
    Row("layers/experts/gate", f"{EXPERT}.gate_proj.weight", linear()),
    Row("layers/experts/up", f"{EXPERT}.up_proj.weight", linear()),
    Row("layers/experts/down", f"{EXPERT}.down_proj.weight", linear()),
)
# Every layer of the published models has experts, so no layer is dense.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def from_hf(hf: dict) -> Qwen3MoeConfig:
    """The Qwen3MoeConfig that a config.json of transformers' Qwen3MoeForCausalLM describes.

    Raises ValueError for dense layers, biases and sliding windows.
    """
    check_fixed(hf, **{name: (value, None) for name, value in FIXED.items()})
    check_layer_types(hf)
    # Reading the key makes `check_unread` accept it. It has no effect without use_sliding_window.
    hf.get("sliding_window")
    return Qwen3MoeConfig(
        **sizes_from_hf(hf) | {"mlp_dim": hf["moe_intermediate_size"]},
        **losses_from_hf(hf),
        num_experts=hf.get("num_experts") or hf["num_local_experts"],
        experts_per_token=hf["num_experts_per_tok"],
        normalized_weights=hf.get("norm_topk_prob", False),
    )


def to_hf(cfg: Qwen3MoeConfig) -> dict:
    """The config.json of transformers' Qwen3MoeForCausalLM for this config.

    Raises ValueError for a window, biases, or missing norms of queries and keys.
    """
    if cfg.window or cfg.qkv_bias or not cfg.qk_norm:
        raise ValueError("model: a Qwen3-MoE has window = 0, qkv_bias = False and qk_norm = True")
    # intermediate_size is the width of dense layers. There are none, so its value is not used.
    return {
        "model_type": "qwen3_moe",
        **sizes_to_hf(cfg),
        **losses_to_hf(cfg),
        **FIXED,
        "moe_intermediate_size": cfg.mlp_dim,
        "intermediate_size": cfg.mlp_dim * cfg.experts_per_token,
        "num_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.experts_per_token,
        "norm_topk_prob": cfg.normalized_weights,
    }


QWEN3_MOE = Family("Qwen3MoeForCausalLM", Qwen3MoeConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
