"""gpt-oss's tensor names and config.json.

Published weights are MXFP4. Exported weights are not quantised.
"""

from bigmodel_jax.models.gpt_oss import GptOssConfig
from bigmodel_jax.pretrained import mxfp4
from bigmodel_jax.pretrained.class_defaults import GPT_OSS_ROPE
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.llama import ATTENTION, COPIES, ENDS, IGNORED, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.mixtral import MLP_NORM, losses_from_hf, losses_to_hf
from bigmodel_jax.pretrained.names import Row, linear

MLP = "model.layers.{i}.mlp"
# Along the last axis of their tensors, the columns of gate and up alternate.
GATE_UP = ("layers/experts/gate", "layers/experts/up")
ROWS = (
    *ENDS,
    *ATTENTION,
    Row("layers/attn/o_bias", "model.layers.{i}.self_attn.o_proj.bias"),
    Row("layers/attn/sinks", "model.layers.{i}.self_attn.sinks"),
    MLP_NORM,
    Row("layers/router/kernel", f"{MLP}.router.weight", linear()),
    Row("layers/router/bias", f"{MLP}.router.bias"),
    Row(GATE_UP, f"{MLP}.experts.gate_up_proj", axis=-1, interleaved=True),
    Row(tuple(f"{path}_bias" for path in GATE_UP), f"{MLP}.experts.gate_up_proj_bias", axis=-1, interleaved=True),
    Row("layers/experts/down", f"{MLP}.experts.down_proj"),
    Row("layers/experts/down_bias", f"{MLP}.experts.down_proj_bias"),
)


def layer_types(num_layers: int) -> list[str]:
    """transformers' `layer_types`: layers with a window and with full attention alternate."""
    return [("sliding_attention", "full_attention")[i % 2] for i in range(num_layers)]


def from_hf(hf: dict) -> GptOssConfig:
    """The GptOssConfig that a config.json of transformers' GptOssForCausalLM describes.

    Raises ValueError for another order of layer types or another quantisation than MXFP4.
    """
    alternating = layer_types(hf["num_hidden_layers"])
    check_fixed(hf, hidden_act="silu", attention_bias=True, layer_types=alternating)
    check_fixed(hf.get("quantization_config") or {}, quant_method="mxfp4")
    if not (hf.get("rope_parameters") or hf.get("rope_scaling")):
        hf = hf | {"rope_scaling": GPT_OSS_ROPE}  # transformers uses its default for null as well
    return GptOssConfig(
        **sizes_from_hf(hf),
        **losses_from_hf(hf),
        window=hf["sliding_window"],
        # Files have one of two names for each of these keys.
        num_experts=hf.get("num_local_experts") or hf["num_experts"],
        experts_per_token=hf.get("num_experts_per_tok") or hf["experts_per_token"],
        swiglu_alpha=hf.get("swiglu_alpha", 1.702),
        swiglu_limit=hf.get("swiglu_limit", 7.0),
    )


def to_hf(cfg: GptOssConfig) -> dict:
    """The config.json of transformers' GptOssForCausalLM for this config.

    Raises ValueError without biases in attention, with norms of queries and keys, or with weights
    of experts that do not sum to 1.
    """
    if not cfg.qkv_bias or cfg.qk_norm or not cfg.normalized_weights:
        raise ValueError("model: a gpt-oss has qkv_bias = True, qk_norm = False and normalized_weights = True")
    # Without a table under this key, transformers would use the published model's scaling.
    unscaled = {} if cfg.rope_scaling.kind != "none" else {"rope_scaling": {"rope_type": "default"}}
    return {
        "model_type": "gpt_oss",
        **sizes_to_hf(cfg),
        **losses_to_hf(cfg),
        **unscaled,
        "attention_bias": True,
        "sliding_window": cfg.window,
        "layer_types": layer_types(cfg.num_layers),
        "num_local_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.experts_per_token,
        "swiglu_alpha": cfg.swiglu_alpha,
        "swiglu_limit": cfg.swiglu_limit,
    }


GPT_OSS = Family("GptOssForCausalLM", GptOssConfig, from_hf, to_hf, ROWS, IGNORED, unpack=mxfp4.unpack, copies=COPIES)
