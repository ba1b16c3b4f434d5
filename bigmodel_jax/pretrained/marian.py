"""Marian's tensor names and config.json: the original Transformer, in the form of the opus-mt
translation models.
"""

from bigmodel_jax.models import ModelConfig
from bigmodel_jax.models.transformer import TransformerConfig
from bigmodel_jax.nn import position
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import VECTOR, Layout, Row, layer_norm, linear

ROW_VECTOR = Layout(ours=lambda x, shape: x.reshape(shape), theirs=lambda x: x.reshape(1, -1))


def attention(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one attention and of the norm after it.

    ours: its parameter path; theirs: its module name.
    """
    rows = []
    for name in ("q", "k", "v"):
        rows.append(Row(f"{ours}/{name}", f"{theirs}.{name}_proj.weight", linear()))
        rows.append(Row(f"{ours}/{name}_bias", f"{theirs}.{name}_proj.bias", VECTOR))
    rows.append(Row(f"{ours}/o", f"{theirs}.out_proj.weight", linear(in_dims=2)))
    rows.append(Row(f"{ours}/o_bias", f"{theirs}.out_proj.bias"))
    return tuple(rows) + layer_norm(f"{ours}_norm", f"{theirs}_layer_norm")


def block(name: str) -> tuple[Row, ...]:
    """The name-table rows of the layers of one stack. name: "encoder" or "decoder".

    The encoder has no parameters for the rows of cross-attention, so they are skipped.
    """
    theirs = f"model.{name}.layers.{{i}}"
    return (
        *attention(f"{name}/attn", f"{theirs}.self_attn"),
        *attention(f"{name}/cross", f"{theirs}.encoder_attn"),
        Row(f"{name}/mlp/up/kernel", f"{theirs}.fc1.weight", linear()),
        Row(f"{name}/mlp/up/bias", f"{theirs}.fc1.bias"),
        Row(f"{name}/mlp/down/kernel", f"{theirs}.fc2.weight", linear()),
        Row(f"{name}/mlp/down/bias", f"{theirs}.fc2.bias"),
        *layer_norm(f"{name}/mlp_norm", f"{theirs}.final_layer_norm"),
    )


ROWS = (
    Row("embed/table", "model.shared.weight"),
    *block("encoder"),
    *block("decoder"),
    Row("logits_bias", "final_logits_bias", ROW_VECTOR),
)
# Sinusoids, which our model computes, and tied copies of the embedding.
IGNORED = (r"model\.(encoder|decoder)\.embed_(positions|tokens)\.weight", r"lm_head\.weight")


def sinusoids(cfg: TransformerConfig):
    """The position table of a Marian file: sinusoids of shape (max_seq_len, embed_dim)."""
    return position.sinusoids(cfg.max_seq_len, cfg.embed_dim)


COPIES = (
    ("lm_head.weight", "model.shared.weight"),
    *((f"model.{side}.embed_tokens.weight", "model.shared.weight") for side in ("encoder", "decoder")),
    *((f"model.{side}.embed_positions.weight", sinusoids) for side in ("encoder", "decoder")),
)
# swish is the older name of silu.
ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu"}


def sides_from_hf(hf: dict) -> dict:
    """The fields of our config for the sizes of encoder and decoder, and the start and end tokens.

    Raises ValueError where encoder and decoder differ in width or heads.
    """
    check_fixed(hf, is_encoder_decoder=True, tie_word_embeddings=True)
    check_fixed(hf, decoder_ffn_dim=hf["encoder_ffn_dim"], decoder_attention_heads=hf["encoder_attention_heads"])
    return {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["encoder_layers"],
        "num_decoder_layers": hf["decoder_layers"],
        "embed_dim": hf["d_model"],
        "num_heads": hf["encoder_attention_heads"],
        "mlp_dim": hf["encoder_ffn_dim"],
        "init_std": hf.get("init_std", 0.02),
        "decoder_start_token_id": hf["decoder_start_token_id"],
    }


def sides_to_hf(cfg: ModelConfig) -> dict:
    """The keys of config.json for what `sides_from_hf` reads, and for the end token."""
    return {
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "encoder_layers": cfg.num_layers,
        "decoder_layers": cfg.num_decoder_layers,
        "d_model": cfg.embed_dim,
        "encoder_attention_heads": cfg.num_heads,
        "decoder_attention_heads": cfg.num_heads,
        "encoder_ffn_dim": cfg.mlp_dim,
        "decoder_ffn_dim": cfg.mlp_dim,
        "activation_function": cfg.activation,
        "tie_word_embeddings": True,
        "init_std": cfg.init_std,
        "decoder_start_token_id": cfg.decoder_start_token_id,
        "eos_token_id": cfg.eos_token_id,
    }


def from_hf(hf: dict) -> TransformerConfig:
    """The TransformerConfig that a config.json of transformers' MarianMTModel describes.

    Raises ValueError where encoder and decoder differ in width or heads, and for norms before the
    sublayers.
    """
    check_fixed(hf, share_encoder_decoder_embeddings=True, static_position_embeddings=True)
    # Older files state keys that Marian's code in transformers no longer reads.
    check_fixed(hf, normalize_before=False, normalize_embedding=False, add_final_layer_norm=False)
    check_fixed(hf, activation_function=tuple(ACTIVATIONS), decoder_vocab_size=(hf["vocab_size"], None))
    return TransformerConfig(
        **sides_from_hf(hf),
        max_seq_len=hf["max_position_embeddings"],
        activation=ACTIVATIONS[hf["activation_function"]],
        scale_embedding=hf.get("scale_embedding", False),
        logits_bias=True,
        eos_token_id=hf.get("eos_token_id", 0),
    )


def to_hf(cfg: TransformerConfig) -> dict:
    """The config.json of transformers' MarianMTModel for this config.

    Raises ValueError without a bias on the logits, which every Marian model has.
    """
    if not cfg.logits_bias:
        raise ValueError("model.logits_bias = False: a Marian model has that bias; set it to True")
    return {
        "model_type": "marian",
        **sides_to_hf(cfg),
        "decoder_vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.max_seq_len,
        "scale_embedding": cfg.scale_embedding,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "dropout": cfg.dropout,
        # Marian's decoder begins with the padding token.
        "pad_token_id": cfg.decoder_start_token_id,
        "forced_eos_token_id": cfg.eos_token_id,
    }


MARIAN = Family("MarianMTModel", TransformerConfig, from_hf, to_hf, ROWS, IGNORED, copies=COPIES)
