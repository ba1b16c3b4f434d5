"""Mixtral's tensor names and config.json. Its attention has Llama's names."""

from bigmodel_jax.models.mixtral import MixtralConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types
from bigmodel_jax.pretrained.llama import ATTENTION, COPIES, ENDS, IGNORED, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.names import Row, linear

MLP_NORM = Row("layers/mlp_norm/scale", "model.layers.{i}.post_attention_layernorm.weight")
EXPERT = "model.layers.{i}.block_sparse_moe.experts.{e}"
ROWS = (
    *ENDS,
    *ATTENTION,
    MLP_NORM,
    Row("layers/router/kernel", "model.layers.{i}.block_sparse_moe.gate.weight", linear()),
    # The published names number the matrices: w1 is the gate, w3 goes up, w2 goes down.
    Row("layers/experts/gate", f"{EXPERT}.w1.weight", linear()),
    Row("layers/experts/up", f"{EXPERT}.w3.weight", linear()),
    Row("layers/experts/down", f"{EXPERT}.w2.weight", linear()),
)


def losses_from_hf(hf: dict, default: float = 0.001) -> dict:
    """The field `load_balancing_loss`: the weight of that loss, 0 unless `output_router_logits` is
    set.

    transformers adds the loss only where the key is set, and published files leave it unset.
    default: the weight where the file gives none.
    """
    used = hf.get("output_router_logits", False)
    return {"load_balancing_loss": float(hf.get("router_aux_loss_coef", default)) if used else 0.0}


def losses_to_hf(cfg) -> dict:
    """The config.json keys of the load-balancing loss; the inverse of `losses_from_hf`."""
    return {
        "output_router_logits": cfg.load_balancing_loss > 0,
        "router_aux_loss_coef": cfg.load_balancing_loss,
    }


def from_hf(hf: dict) -> MixtralConfig:
    """The MixtralConfig that a config.json of transformers' MixtralForCausalLM describes."""
    window = hf.get("sliding_window") or 0
    check_fixed(hf, hidden_act="silu")
    check_layer_types(hf, window)
    return MixtralConfig(
        **sizes_from_hf(hf),
        **losses_from_hf(hf),
        window=window,
        num_experts=hf["num_local_experts"],
        experts_per_token=hf["num_experts_per_tok"],
    )


def to_hf(cfg: MixtralConfig) -> dict:
    """The config.json of transformers' MixtralForCausalLM for this config.

    Raises ValueError for biases, for norms of queries and keys, and for weights of experts that do
    not sum to 1.
    """
    if cfg.qkv_bias or cfg.qk_norm or not cfg.normalized_weights:
        raise ValueError("model: a Mixtral has qkv_bias = False, qk_norm = False and normalized_weights = True")
    return {
        "model_type": "mixtral",
        **sizes_to_hf(cfg),
        **losses_to_hf(cfg),
        "sliding_window": cfg.window or None,
        "num_local_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.experts_per_token,
    }


MIXTRAL = Family("MixtralForCausalLM", MixtralConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
