"""The tensor names and config.json of Parakeet (transformers' ParakeetForCTC).

The model is a conformer encoder whose head gives logits for CTC.
"""

from bigmodel_jax.models.conformer import ConformerConfig
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import VECTOR, Layout, Row, batch_norm, dense, layer_norm, linear

LAYER = "encoder.layers.{i}."
# Their layouts are: Conv1d of width 1 (out, in, 1) and depthwise Conv1d (channels, 1, width); then
# Conv2d (out, in, height, width), depthwise Conv2d (channels, 1, height, width) and 1x1 Conv2d.
POINTWISE = Layout(ours=lambda x, _: x[..., 0].T, theirs=lambda x: x.T[..., None])
DEPTHWISE = Layout(ours=lambda x, _: x[:, 0].T, theirs=lambda x: x.T[:, None])
FIRST = Layout(ours=lambda x, _: x.transpose(2, 3, 1, 0), theirs=lambda x: x.transpose(3, 2, 0, 1))
BY_DEPTH = Layout(ours=lambda x, _: x[:, 0].transpose(1, 2, 0), theirs=lambda x: x.transpose(2, 0, 1)[:, None])
POINTWISE_2D = Layout(ours=lambda x, _: x[..., 0, 0].T, theirs=lambda x: x.T[..., None, None])
MOST_HALVINGS = 4


def subsampling() -> tuple[Row, ...]:
    """The name-table rows of the convolutions that shorten the sequence, up to MOST_HALVINGS of
    them.

    Their `layers` list is a convolution and a ReLU, then groups of three: depthwise convolution,
    pointwise convolution, ReLU. So group n has its convolutions at 3n - 1 and 3n.
    """
    layers, rows = "encoder.subsampling.layers.", dense("subsampling/conv0", "encoder.subsampling.layers.0", FIRST)
    for n in range(1, MOST_HALVINGS):
        rows += dense(f"subsampling/conv{n}/depthwise", f"{layers}{3 * n - 1}", BY_DEPTH)
        rows += dense(f"subsampling/conv{n}/pointwise", f"{layers}{3 * n}", POINTWISE_2D)
    return rows + dense("subsampling/out", "encoder.subsampling.linear", linear(in_dims=2))


ATTENTION, CONV = LAYER + "self_attn.", LAYER + "conv."
VALUE_AND_GATE = ("layers/conv/value", "layers/conv/gate")
ROWS = (
    *subsampling(),
    *layer_norm("layers/mlp1_norm", LAYER + "norm_feed_forward1"),
    *dense("layers/mlp1/up", LAYER + "feed_forward1.linear1"),
    *dense("layers/mlp1/down", LAYER + "feed_forward1.linear2"),
    *layer_norm("layers/attn_norm", LAYER + "norm_self_att"),
    *(Row(f"layers/attn/{n}", f"{ATTENTION}{n}_proj.weight", linear()) for n in "qkv"),
    *(Row(f"layers/attn/{n}_bias", f"{ATTENTION}{n}_proj.bias", VECTOR) for n in "qkv"),
    Row("layers/attn/o", ATTENTION + "o_proj.weight", linear(in_dims=2)),
    Row("layers/attn/o_bias", ATTENTION + "o_proj.bias"),
    Row("layers/attn/positions", ATTENTION + "relative_k_proj.weight", linear()),
    Row("layers/attn/content_bias", ATTENTION + "bias_u"),
    Row("layers/attn/position_bias", ATTENTION + "bias_v"),
    *layer_norm("layers/conv_norm", LAYER + "norm_conv"),
    Row(tuple(f"{path}/kernel" for path in VALUE_AND_GATE), CONV + "pointwise_conv1.weight", POINTWISE),
    Row(tuple(f"{path}/bias" for path in VALUE_AND_GATE), CONV + "pointwise_conv1.bias"),
    *dense("layers/conv/depthwise", CONV + "depthwise_conv", DEPTHWISE),
    *batch_norm("layers/conv/norm", CONV + "norm"),
    *dense("layers/conv/out", CONV + "pointwise_conv2", POINTWISE),
    *layer_norm("layers/mlp2_norm", LAYER + "norm_feed_forward2"),
    *dense("layers/mlp2/up", LAYER + "feed_forward2.linear1"),
    *dense("layers/mlp2/down", LAYER + "feed_forward2.linear2"),
    *layer_norm("layers/out_norm", LAYER + "norm_out"),
    # Their head is a convolution of width 1, which computes what a linear layer does.
    *dense("head", "ctc_head", POINTWISE),
)
# The defaults of transformers' ParakeetEncoderConfig for keys that a config.json may leave out.
DEFAULTS = {
    "hidden_act": "silu",
    "attention_bias": True,
    "convolution_bias": True,
    "conv_kernel_size": 9,
    "subsampling_factor": 8,
    "subsampling_conv_channels": 256,
    "num_mel_bins": 80,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "scale_input": True,
}
IGNORED = (r".*\.num_batches_tracked",)  # a counter that batch norm with a fixed momentum ignores


def from_hf(hf: dict) -> ConformerConfig:
    """The ConformerConfig that a config.json of transformers' ParakeetForCTC describes.

    Raises ValueError for a convolution or an attention that our conformer does not have.
    """
    own = DEFAULTS | hf["encoder_config"]
    # Reading the key makes `check_unread` accept it. It has no effect: any distance can be
    # computed.
    own.get("max_position_embeddings")
    check_fixed(own, hidden_act="silu", subsampling_conv_kernel_size=3, subsampling_conv_stride=2)
    check_fixed(own, num_key_value_heads=(own["num_attention_heads"], None))
    # Our config has one flag for the biases of attention and convolutions.
    check_fixed(own, convolution_bias=own["attention_bias"], subsampling_factor=(2, 4, 8, 16))
    return ConformerConfig(
        num_mels=own["num_mel_bins"],
        vocab_size=hf["vocab_size"],
        subsampling=own["subsampling_factor"],
        subsampling_dim=own["subsampling_conv_channels"],
        num_layers=own["num_hidden_layers"],
        embed_dim=own["hidden_size"],
        num_heads=own["num_attention_heads"],
        mlp_dim=own["intermediate_size"],
        conv_width=own["conv_kernel_size"],
        bias=own["attention_bias"],
        scale_input=own["scale_input"],
        init_std=own.get("initializer_range", 0.02),
    )


def to_hf(cfg: ConformerConfig) -> dict:
    """The config.json of transformers' ParakeetForCTC.

    Raises ValueError unless the convolutions use batch norm.
    """
    if cfg.conv_norm != "batch":
        raise ValueError(f"model.conv_norm = {cfg.conv_norm!r}: the published architecture has 'batch'")
    return {
        "model_type": "parakeet_ctc",
        "vocab_size": cfg.vocab_size,
        "encoder_config": {
            "model_type": "parakeet_encoder",
            "num_mel_bins": cfg.num_mels,
            "subsampling_factor": cfg.subsampling,
            "subsampling_conv_channels": cfg.subsampling_dim,
            "subsampling_conv_kernel_size": 3,
            "subsampling_conv_stride": 2,
            "num_hidden_layers": cfg.num_layers,
            "hidden_size": cfg.embed_dim,
            "num_attention_heads": cfg.num_heads,
            "intermediate_size": cfg.mlp_dim,
            "conv_kernel_size": cfg.conv_width,
            "attention_bias": cfg.bias,
            "convolution_bias": cfg.bias,
            "scale_input": cfg.scale_input,
            "hidden_act": "silu",
            "initializer_range": cfg.init_std,
        },
    }


CONFORMER = Family("ParakeetForCTC", ConformerConfig, from_hf, to_hf, ROWS, IGNORED)
