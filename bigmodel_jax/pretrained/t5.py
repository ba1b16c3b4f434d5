"""T5's tensor names and config.json.

A decoder block has a cross-attention that an encoder block lacks.
"""

from bigmodel_jax.models.t5 import T5Config
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import Row, Source, linear


def attention(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one attention and of the norm before it.

    ours: its parameter path; theirs: its module name.
    """
    return (
        Row(f"{ours}_norm/scale", f"{theirs.rpartition('.')[0]}.layer_norm.weight"),
        Row(f"{ours}/q", f"{theirs}.q.weight", linear()),
        Row(f"{ours}/k", f"{theirs}.k.weight", linear()),
        Row(f"{ours}/v", f"{theirs}.v.weight", linear()),
        Row(f"{ours}/o", f"{theirs}.o.weight", linear(in_dims=2)),
    )


def feedforward(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of the MLP and of the norm before it.

    v1.0 has two matrices, and v1.1 has three, because it is gated. A config has parameters for one
    version only, and the other version's rows are skipped.
    """
    return (
        Row(f"{ours}_norm/scale", f"{theirs}.layer_norm.weight"),
        Row(f"{ours}/up/kernel", f"{theirs}.DenseReluDense.wi.weight", linear()),
        Row(f"{ours}/down/kernel", f"{theirs}.DenseReluDense.wo.weight", linear()),
        Row(f"{ours}/gate", f"{theirs}.DenseReluDense.wi_0.weight", linear()),
        Row(f"{ours}/up", f"{theirs}.DenseReluDense.wi_1.weight", linear()),
        Row(f"{ours}/down", f"{theirs}.DenseReluDense.wo.weight", linear()),
    )


def ends(name: str) -> tuple[Row, ...]:
    """The name-table rows of a stack outside its layers: the relative position bias and the final
    norm.
    """
    return (
        # The first layer holds the bias that all layers of its stack share.
        Row(f"{name}/relative_bias", f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        Row(f"{name}/norm/scale", f"{name}.final_layer_norm.weight"),
    )


ROWS = (
    Row("embed/table", "shared.weight"),
    Row("head/table", "lm_head.weight"),
    *ends("encoder"),
    *attention("encoder/layers/attn", "encoder.block.{i}.layer.0.SelfAttention"),
    *feedforward("encoder/layers/mlp", "encoder.block.{i}.layer.1"),
    *ends("decoder"),
    *attention("decoder/layers/attn", "decoder.block.{i}.layer.0.SelfAttention"),
    *attention("decoder/layers/cross", "decoder.block.{i}.layer.1.EncDecAttention"),
    *feedforward("decoder/layers/mlp", "decoder.block.{i}.layer.2"),
)
# Tied copies of the embedding, and a bias in the first files, which cross-attention never used.
IGNORED = (
    r"(encoder|decoder)\.embed_tokens\.weight",
    r"lm_head\.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)
COPIES = tuple(
    (f"{name}.weight", "shared.weight") for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
)


def from_hf(hf: dict) -> T5Config:
    """The T5Config that a config.json of transformers' T5ForConditionalGeneration describes.

    Raises ValueError for an MLP other than v1.0's (ReLU) and v1.1's (gated GELU).
    """
    check_fixed(hf, feed_forward_proj=("relu", "gated-gelu"), is_encoder_decoder=True)
    gated = hf.get("feed_forward_proj", "relu") == "gated-gelu"
    check_fixed(hf, dense_act_fn=("gelu_new" if gated else "relu", None), is_gated_act=(gated, None))
    return T5Config(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_layers"],
        # null means as many layers as the encoder has.
        num_decoder_layers=hf.get("num_decoder_layers") or hf["num_layers"],
        embed_dim=hf["d_model"],
        num_heads=hf["num_heads"],
        head_dim=hf["d_kv"],
        mlp_dim=hf["d_ff"],
        max_seq_len=hf.get("n_positions", 512),
        num_buckets=hf["relative_attention_num_buckets"],
        max_distance=hf.get("relative_attention_max_distance", 128),
        gated=gated,
        # transformers 5 always writes tie_word_embeddings = true. scale_decoder_outputs tells
        # whether the embeddings are tied.
        tied_embeddings=all([hf.get("tie_word_embeddings", True), hf.get("scale_decoder_outputs", True)]),
        norm_eps=hf["layer_norm_epsilon"],
        init_factor=hf.get("initializer_factor", 1.0),
        decoder_start_token_id=hf.get("decoder_start_token_id") or 0,
        eos_token_id=hf.get("eos_token_id", 1),
    )


def to_hf(cfg: T5Config) -> dict:
    """The config.json of transformers' T5ForConditionalGeneration for this config."""
    return {
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab_size,
        "num_layers": cfg.num_layers,
        "num_decoder_layers": cfg.num_decoder_layers,
        "d_model": cfg.embed_dim,
        "num_heads": cfg.num_heads,
        "d_kv": cfg.head_dim,
        "d_ff": cfg.mlp_dim,
        "n_positions": cfg.max_seq_len,
        "relative_attention_num_buckets": cfg.num_buckets,
        "relative_attention_max_distance": cfg.max_distance,
        "feed_forward_proj": "gated-gelu" if cfg.gated else "relu",
        "tie_word_embeddings": cfg.tied_embeddings,
        "layer_norm_epsilon": cfg.norm_eps,
        "initializer_factor": cfg.init_factor,
        "dropout_rate": cfg.dropout,
        "decoder_start_token_id": cfg.decoder_start_token_id,
        # T5's decoder begins with the padding token.
        "pad_token_id": cfg.decoder_start_token_id,
        "eos_token_id": cfg.eos_token_id,
    }


def with_head(source: Source) -> Source:
    """The tensors with the head's table, which is the embedding's where a file has no
    `lm_head.weight`.

    transformers 5 ties every head when it saves, also a head whose inputs are not scaled.
    """
    tied = {"lm_head.weight": source["shared.weight"]} if "shared.weight" in source else {}
    return tied | dict(source)


T5 = Family("T5ForConditionalGeneration", T5Config, from_hf, to_hf, ROWS, IGNORED, unpack=with_head, copies=COPIES)
