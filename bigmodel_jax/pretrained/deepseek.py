"""DeepSeek-V3's tensor names and config.json.

Published weights are 8-bit. Exported weights are not quantised.
"""

import dataclasses

from bigmodel_jax.models.deepseek import DeepseekConfig
from bigmodel_jax.pretrained import fp8
from bigmodel_jax.pretrained.family import MSCALES, Family, check_fixed, rope_from_hf, rope_settings, rope_to_hf
from bigmodel_jax.pretrained.llama import ENDS
from bigmodel_jax.pretrained.names import Row, linear

LAYER = "model.layers.{i}."


def attention(ours: str, start: str | int) -> tuple[Row, ...]:
    """The name-table rows of latent attention and of the two norms of a block.

    start: the number of the stack's first layer, or the name of the config field that holds it.
    """
    theirs = f"{LAYER}self_attn."
    return (
        Row(f"{ours}/attn_norm/scale", f"{LAYER}input_layernorm.weight", start=start),
        Row(f"{ours}/attn/q", f"{theirs}q_proj.weight", linear(), start=start),
        Row(f"{ours}/attn/q_a", f"{theirs}q_a_proj.weight", linear(), start=start),
        Row(f"{ours}/attn/q_norm/scale", f"{theirs}q_a_layernorm.weight", start=start),
        Row(f"{ours}/attn/q_b", f"{theirs}q_b_proj.weight", linear(), start=start),
        # Their tensor holds the rows of the latent, then those of the rotary key that all heads
        # share.
        Row((f"{ours}/attn/kv_a", f"{ours}/attn/k_rope"), f"{theirs}kv_a_proj_with_mqa.weight", linear(), start=start),
        Row(f"{ours}/attn/kv_norm/scale", f"{theirs}kv_a_layernorm.weight", start=start),
        Row(f"{ours}/attn/kv_b", f"{theirs}kv_b_proj.weight", linear(), start=start),
        Row(f"{ours}/attn/o", f"{theirs}o_proj.weight", linear(in_dims=2), start=start),
        Row(f"{ours}/mlp_norm/scale", f"{LAYER}post_attention_layernorm.weight", start=start),
    )


def feedforward(ours: str, theirs: str, start: str | int) -> tuple[Row, ...]:
    """The name-table rows of a gated MLP.

    theirs: the part of their names before `gate_proj`, `up_proj` and `down_proj`.
    """
    names = ("gate", "up", "down")
    return tuple(Row(f"{ours}/{n}", f"{LAYER}mlp.{theirs}{n}_proj.weight", linear(), start=start) for n in names)


def sparse(ours: str, start: str) -> tuple[Row, ...]:
    """The name-table rows of a stack of layers with experts: attention, router, routed experts and
    shared experts.
    """
    return (
        *attention(ours, start),
        Row(f"{ours}/router/kernel", f"{LAYER}mlp.gate.weight", linear(), start=start),
        Row(f"{ours}/router/choice_bias", f"{LAYER}mlp.gate.e_score_correction_bias", start=start),
        *feedforward(f"{ours}/experts", "experts.{e}.", start),
        *feedforward(f"{ours}/shared", "shared_experts.", start),
    )


ROWS = (
    *ENDS,
    *attention("dense_layers", 0),
    *feedforward("dense_layers/mlp", "", 0),
    *sparse("layers", "num_dense_layers"),
    # The modules for multi-token prediction have the layer numbers after the last layer's.
    *sparse("mtp", "num_layers"),
    Row("mtp/embed_norm/scale", f"{LAYER}enorm.weight", start="num_layers"),
    Row("mtp/hidden_norm/scale", f"{LAYER}hnorm.weight", start="num_layers"),
    Row("mtp/merge/kernel", f"{LAYER}eh_proj.weight", linear(), start="num_layers"),
    Row("mtp/norm/scale", f"{LAYER}shared_head.norm.weight", start="num_layers"),
)
# Layer 61 of the published file predicts a second token. Decoding does not need it, and
# transformers ignores it as well.
IGNORED = (r".*rotary_emb\.inv_freq", r"model\.layers\.61\..*")

# Our field -> their key, where both hold the same number.
SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_dense_layers": "first_k_dense_replace",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "mlp_dim": "intermediate_size",
    "expert_dim": "moe_intermediate_size",
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
    "experts_per_token": "num_experts_per_tok",
    "num_groups": "n_group",
    "groups_per_token": "topk_group",
    "normalize_weights": "norm_topk_prob",
    "routed_scale": "routed_scaling_factor",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}


def from_hf(hf: dict) -> DeepseekConfig:
    """The DeepseekConfig that a config.json of transformers' DeepseekV3ForCausalLM describes.

    It has no modules for multi-token prediction, since a file need not hold those that
    `num_nextn_predict_layers` counts. Raises ValueError for another routing, activation or
    quantisation.
    """
    check_fixed(
        hf,
        hidden_act="silu",
        attention_bias=False,
        tie_word_embeddings=False,
        rope_interleave=True,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        moe_layer_freq=1,
        # Latent attention has no groups of heads, so this key only repeats another.
        num_key_value_heads=(hf["num_attention_heads"], None),
        head_dim=(hf["qk_rope_head_dim"], None),
        qk_head_dim=(hf["qk_nope_head_dim"] + hf["qk_rope_head_dim"], None),
    )
    # Only the published inference code quantises activations ("activation_scheme"). The weights are
    # the same either way, so the key is not checked.
    quantized = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [fp8.BLOCK, fp8.BLOCK]}
    check_fixed(hf.get("quantization_config") or {}, **quantized)
    theta, scaling = rope_from_hf(hf)
    found = rope_settings(hf)
    # The model config keeps mscale and mscale_all_dim itself, because attention reads one of them
    # too.
    scaling = dataclasses.replace(scaling, attention_factor=float(found.get("attention_factor") or 0.0))
    return DeepseekConfig(
        **{ours: hf[theirs] for ours, theirs in SIZES.items()},
        **{name: float(found.get(name) or 0.0) for name in MSCALES},
        q_lora_rank=hf["q_lora_rank"] or 0,
        balance_loss=hf.get("aux_loss_alpha", 0.0),
        rope_theta=theta,
        rope_scaling=scaling,
    )


def to_hf(cfg: DeepseekConfig) -> dict:
    """The config.json of transformers' DeepseekV3ForCausalLM for this config."""
    rope = rope_to_hf(cfg.rope_theta, cfg.rope_scaling)
    if rope["rope_scaling"]:
        rope["rope_scaling"] |= {name: getattr(cfg, name) for name in MSCALES if getattr(cfg, name)}
    return {
        "model_type": "deepseek_v3",
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        **rope,
        "q_lora_rank": cfg.q_lora_rank or None,
        "num_key_value_heads": cfg.num_heads,
        "num_nextn_predict_layers": cfg.num_mtp_layers,
        "aux_loss_alpha": cfg.balance_loss,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
        "rope_interleave": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


DEEPSEEK_V3 = Family("DeepseekV3ForCausalLM", DeepseekConfig, from_hf, to_hf, ROWS, IGNORED, unpack=fp8.unpack)
