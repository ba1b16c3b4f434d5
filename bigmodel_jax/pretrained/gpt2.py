"""GPT-2's tensor names and config.json.

Kernels have the shape (in, out), and one tensor holds queries, keys and values.
"""

from bigmodel_jax.models.gpt2 import GPT2Config
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import VECTOR, Row, kernel

QKV = ("layers/attn/q", "layers/attn/k", "layers/attn/v")
ROWS = (
    Row("embed/table", "transformer.wte.weight"),
    Row("positions/table", "transformer.wpe.weight"),
    Row("layers/attn_norm/scale", "transformer.h.{i}.ln_1.weight"),
    Row("layers/attn_norm/bias", "transformer.h.{i}.ln_1.bias"),
    Row(QKV, "transformer.h.{i}.attn.c_attn.weight", kernel(), axis=1),
    Row(tuple(f"{path}_bias" for path in QKV), "transformer.h.{i}.attn.c_attn.bias", VECTOR),
    Row("layers/attn/o", "transformer.h.{i}.attn.c_proj.weight", kernel(in_dims=2)),
    Row("layers/attn/o_bias", "transformer.h.{i}.attn.c_proj.bias"),
    Row("layers/mlp_norm/scale", "transformer.h.{i}.ln_2.weight"),
    Row("layers/mlp_norm/bias", "transformer.h.{i}.ln_2.bias"),
    Row("layers/mlp/up/kernel", "transformer.h.{i}.mlp.c_fc.weight", kernel()),
    Row("layers/mlp/up/bias", "transformer.h.{i}.mlp.c_fc.bias"),
    Row("layers/mlp/down/kernel", "transformer.h.{i}.mlp.c_proj.weight", kernel()),
    Row("layers/mlp/down/bias", "transformer.h.{i}.mlp.c_proj.bias"),
    Row("norm/scale", "transformer.ln_f.weight"),
    Row("norm/bias", "transformer.ln_f.bias"),
)
# The causal masks in older files, and the head, which is tied to the embedding.
IGNORED = (r".*\.attn\.(masked_)?bias", r"lm_head\.weight")
COPIES = (("lm_head.weight", "transformer.wte.weight"),)


def from_hf(hf: dict) -> GPT2Config:
    """The GPT2Config that a config.json of transformers' GPT2LMHeadModel describes.

    Raises ValueError for another activation, scaling of attention or MLP width.
    """
    check_fixed(hf, activation_function="gelu_new", scale_attn_by_inverse_layer_idx=False, tie_word_embeddings=True)
    check_fixed(hf, scale_attn_weights=True, n_inner=(None, 4 * hf["n_embd"]))
    return GPT2Config(
        vocab_size=hf["vocab_size"],
        num_layers=hf["n_layer"],
        embed_dim=hf["n_embd"],
        num_heads=hf["n_head"],
        max_seq_len=hf["n_positions"],
        norm_eps=hf["layer_norm_epsilon"],
        init_std=hf.get("initializer_range", 0.02),
    )


def to_hf(cfg: GPT2Config) -> dict:
    """The config.json of transformers' GPT2LMHeadModel for this config."""
    return {
        "model_type": "gpt2",
        "vocab_size": cfg.vocab_size,
        "n_layer": cfg.num_layers,
        "n_embd": cfg.embed_dim,
        "n_head": cfg.num_heads,
        "n_positions": cfg.max_seq_len,
        "n_inner": None,
        "layer_norm_epsilon": cfg.norm_eps,
        "initializer_range": cfg.init_std,
        "activation_function": "gelu_new",
        "resid_pdrop": cfg.dropout,
        "embd_pdrop": cfg.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    }


GPT2 = Family("GPT2LMHeadModel", GPT2Config, from_hf, to_hf, ROWS, IGNORED, prefix="transformer.", copies=COPIES)
