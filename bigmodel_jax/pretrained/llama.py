"""Llama's tensor names and config.json. Mistral, Qwen and others use the same names."""

from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types, rope_from_hf, rope_to_hf
from bigmodel_jax.pretrained.names import VECTOR, Row, linear

ATTENTION = (
    Row("layers/attn_norm/scale", "model.layers.{i}.input_layernorm.weight"),
    Row("layers/attn/q", "model.layers.{i}.self_attn.q_proj.weight", linear()),
    Row("layers/attn/k", "model.layers.{i}.self_attn.k_proj.weight", linear()),
    Row("layers/attn/v", "model.layers.{i}.self_attn.v_proj.weight", linear()),
    Row("layers/attn/o", "model.layers.{i}.self_attn.o_proj.weight", linear(in_dims=2)),
    Row("layers/attn/q_bias", "model.layers.{i}.self_attn.q_proj.bias", VECTOR),
    Row("layers/attn/k_bias", "model.layers.{i}.self_attn.k_proj.bias", VECTOR),
    Row("layers/attn/v_bias", "model.layers.{i}.self_attn.v_proj.bias", VECTOR),
    Row("layers/attn/q_norm/scale", "model.layers.{i}.self_attn.q_norm.weight"),
    Row("layers/attn/k_norm/scale", "model.layers.{i}.self_attn.k_norm.weight"),
)
ENDS = (
    Row("embed/table", "model.embed_tokens.weight"),
    Row("norm/scale", "model.norm.weight"),
    Row("head/table", "lm_head.weight"),
)
ROWS = (
    *ENDS,
    *ATTENTION,
    Row("layers/mlp_norm/scale", "model.layers.{i}.post_attention_layernorm.weight"),
    Row("layers/mlp/gate", "model.layers.{i}.mlp.gate_proj.weight", linear()),
    Row("layers/mlp/up", "model.layers.{i}.mlp.up_proj.weight", linear()),
    Row("layers/mlp/down", "model.layers.{i}.mlp.down_proj.weight", linear()),
)
# Older files hold the rotary frequencies. Files with tied embeddings may hold the head as a copy.
IGNORED = (r".*rotary_emb\.inv_freq", r"lm_head\.weight")
COPIES = (("lm_head.weight", "model.embed_tokens.weight"),)


def sizes_from_hf(hf: dict) -> dict:
    """The config fields that all families like Llama share, read from a config.json."""
    theta, scaling = rope_from_hf(hf)
    return {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "embed_dim": hf["hidden_size"],
        "num_heads": hf["num_attention_heads"],
        # null means one head of keys and values for each head of queries.
        "num_kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "mlp_dim": hf["intermediate_size"],
        "max_seq_len": hf["max_position_embeddings"],
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": hf["rms_norm_eps"],
        "init_std": hf.get("initializer_range", 0.02),
        "tied_embeddings": hf.get("tie_word_embeddings", False),
    }


def sizes_to_hf(cfg) -> dict:
    """The config.json keys that all families like Llama share; the inverse of `sizes_from_hf`."""
    return {
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.embed_dim,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "max_position_embeddings": cfg.max_seq_len,
        "rms_norm_eps": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tied_embeddings,
        "hidden_act": "silu",
        **rope_to_hf(cfg.rope_theta, cfg.rope_scaling),
    }


def from_hf(hf: dict) -> LlamaConfig:
    """The LlamaConfig that a config.json of transformers' LlamaForCausalLM describes.

    Raises ValueError for biases, another activation, or layers that differ.
    """
    check_fixed(hf, hidden_act="silu", attention_bias=False, mlp_bias=False)
    check_layer_types(hf)
    return LlamaConfig(**sizes_from_hf(hf))


def check_plain(cfg: LlamaConfig, model_type: str, *allowed: str) -> None:
    """Raises ValueError for a window, biases or norms of queries and keys that the files cannot
    express.

    allowed: the names among `window`, `qkv_bias` and `qk_norm` that this family does have.
    """
    for name in {"window", "qkv_bias", "qk_norm"} - set(allowed):
        if value := getattr(cfg, name):
            raise ValueError(f"model.{name} = {value!r}: a {model_type} has none; it must be {type(value)()!r}")


def to_hf(cfg: LlamaConfig) -> dict:
    """The config.json of transformers' LlamaForCausalLM for this config.

    Raises ValueError for a window, biases, or norms of queries and keys.
    """
    if cfg.window or cfg.qkv_bias or cfg.qk_norm:
        raise ValueError("model: a Llama has no window, qkv_bias or qk_norm; use MistralConfig or a Qwen config")
    return {"model_type": "llama", **sizes_to_hf(cfg), "attention_bias": False, "mlp_bias": False}


LLAMA = Family("LlamaForCausalLM", LlamaConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
