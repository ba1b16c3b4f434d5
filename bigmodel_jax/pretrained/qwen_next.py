"""Qwen3-Next's tensor names and config.json. Attention and experts have Qwen3-MoE's names."""

from bigmodel_jax.models.qwen_next import DELTA, LAYERS, Qwen3NextConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, rotary_dim_from_hf, rotary_dim_to_hf
from bigmodel_jax.pretrained.llama import COPIES, ENDS, IGNORED, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.mixtral import losses_from_hf, losses_to_hf
from bigmodel_jax.pretrained.names import SAME, Layout, Row, linear

# Theirs (channels, 1, taps), ours (heads, dimensions, taps).
CONV = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x.reshape(-1, 1, x.shape[-1]))
# Theirs (1, D), ours (D,).
GATE = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x.reshape(1, -1))
MLP = {"experts": "experts.{e}", "shared": "shared_expert"}
# Our path in a layer -> their name, and the layout.
COMMON = {
    "mixer_norm/scale": ("input_layernorm.weight", SAME),
    "mlp_norm/scale": ("post_attention_layernorm.weight", SAME),
    "router/kernel": ("mlp.gate.weight", linear()),
    "shared_gate": ("mlp.shared_expert_gate.weight", GATE),
    **{
        f"{ours}/{name}": (f"mlp.{theirs}.{name}_proj.weight", linear())
        for ours, theirs in MLP.items()
        for name in ("gate", "up", "down")
    },
}
# In both layouts a head's query stands before the gate of its output.
ATTENTION = {
    **{f"mixer/{name}": (f"self_attn.{name}_proj.weight", linear()) for name in ("q", "k", "v")},
    "mixer/o": ("self_attn.o_proj.weight", linear(in_dims=2)),
    "mixer/q_norm/scale": ("self_attn.q_norm.weight", SAME),
    "mixer/k_norm/scale": ("self_attn.k_norm.weight", SAME),
}
DELTA_NET = {
    "mixer/qkvz": ("linear_attn.in_proj_qkvz.weight", linear()),
    "mixer/rate_decay": ("linear_attn.in_proj_ba.weight", linear()),
    ("mixer/q_conv", "mixer/k_conv", "mixer/v_conv"): ("linear_attn.conv1d.weight", CONV),
    "mixer/log_decay": ("linear_attn.A_log", SAME),
    "mixer/step_bias": ("linear_attn.dt_bias", SAME),
    "mixer/norm/scale": ("linear_attn.norm.weight", SAME),
    "mixer/o": ("linear_attn.out_proj.weight", linear(in_dims=2)),
}


def rows(place: int, name: str) -> tuple[Row, ...]:
    """The name-table rows of the layer at `place` in each block of the stack."""

    def one(ours: str | tuple[str, ...], theirs: str, layout: Layout) -> Row:
        paths = tuple(f"layers/{name}/{path}" for path in ((ours,) if isinstance(ours, str) else ours))
        return Row(paths, f"model.layers.{{i}}.{theirs}", layout, start=place, every=len(LAYERS))

    table = COMMON | (DELTA_NET if name in DELTA else ATTENTION)
    return tuple(one(ours, *theirs) for ours, theirs in table.items())


ROWS = (*ENDS, *(row for place, name in enumerate(LAYERS) for row in rows(place, name)))
# Every layer of the published models has experts, so no layer is dense.
FIXED = {"hidden_act": "silu", "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
# Our field -> their key, where both hold the same number.
SIZES = {
    "num_key_heads": "linear_num_key_heads",
    "num_value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "conv_width": "linear_conv_kernel_dim",
    "mlp_dim": "moe_intermediate_size",
    "shared_dim": "shared_expert_intermediate_size",
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "normalized_weights": "norm_topk_prob",
}


def layer_types(num_layers: int) -> list[str]:
    """The only supported `layer_types`: three layers of Gated DeltaNet, then one of attention."""
    kinds = ["linear_attention" if name in DELTA else "full_attention" for name in LAYERS]
    return (kinds * num_layers)[:num_layers]


def from_hf(hf: dict) -> Qwen3NextConfig:
    """The Qwen3NextConfig that a config.json of transformers' Qwen3NextForCausalLM describes.

    Raises ValueError for dense layers, biases and another order of layers.
    """
    check_fixed(hf, **{name: (value, None) for name, value in FIXED.items()})
    # transformers reads the interval only where the file does not list the layers.
    check_fixed(hf, full_attention_interval=len(LAYERS), layer_types=(layer_types(hf["num_hidden_layers"]), None))
    rotary_dim, whole = rotary_dim_from_hf(hf, hf["head_dim"], default=0.25)
    sizes = sizes_from_hf(whole) | {ours: hf[theirs] for ours, theirs in SIZES.items()}
    return Qwen3NextConfig(**sizes, **losses_from_hf(hf), rotary_dim=rotary_dim)


def to_hf(cfg: Qwen3NextConfig) -> dict:
    """The config.json of transformers' Qwen3NextForCausalLM for this config."""
    # intermediate_size is the width of dense layers. There are none, so its value is not used.
    return {
        "model_type": "qwen3_next",
        **sizes_to_hf(cfg),
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        **losses_to_hf(cfg),
        **rotary_dim_to_hf(cfg.rotary_dim, cfg.head_dim),
        **FIXED,
        "intermediate_size": cfg.mlp_dim * cfg.experts_per_token,
        "full_attention_interval": len(LAYERS),
        "layer_types": layer_types(cfg.num_layers),
    }


# The module for multi-token prediction, which transformers leaves out as well.
LEFT_OUT = (r"mtp\..*",)
QWEN3_NEXT = Family(
    "Qwen3NextForCausalLM", Qwen3NextConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES, left_out=LEFT_OUT
)
