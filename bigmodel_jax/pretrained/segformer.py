"""SegFormer's tensor names and config.json. Each stage has its own rows, with stacked layers."""

from bigmodel_jax.models.segformer import SegformerConfig
from bigmodel_jax.pretrained.config_json import read_as
from bigmodel_jax.pretrained.config_keys import COUNTS
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import CONV, VECTOR, Layout, Row, linear
from bigmodel_jax.pretrained.vit import ACTIVATIONS, THEIR_ACTIVATIONS

MAX_STAGES = 8  # stages; published models have 4
PLACE = Layout(  # their tensor is a 1x1 convolution (out, in, 1, 1), ours a matrix (..., in, out)
    ours=lambda x, shape: x[:, :, 0, 0].T.reshape(shape),
    theirs=lambda x: x.reshape(-1, x.shape[-1]).T[:, :, None, None],
)
TUPLES = {
    "depths": "depths",
    "channels": "hidden_sizes",
    "num_heads": "num_attention_heads",
    "mlp_ratios": "mlp_ratios",
    "reductions": "sr_ratios",
    "patch_sizes": "patch_sizes",
    "strides": "strides",
}


def pair(ours: str, theirs: str, layout: Layout, ours_weight: str = "kernel") -> tuple[Row, ...]:
    """The two name-table rows of a layer: its weight (kernel or scale) and its bias.

    ours_weight: our weight's name.
    """
    return Row(f"{ours}/{ours_weight}", f"{theirs}.weight", layout), Row(f"{ours}/bias", f"{theirs}.bias", VECTOR)


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """The two name-table rows of a norm: its scale and its bias."""
    return pair(ours, theirs, VECTOR, "scale")


def stage(number: int) -> tuple[Row, ...]:
    """The name-table rows of one stage, and of the decoder's projection of its output."""
    ours, encoder = f"stage{number}", "segformer.encoder."
    layers, theirs = f"{ours}/layers", f"{encoder}block.{number}.{{i}}."
    attention = theirs + "attention."
    names = {"q": "query", "k": "key", "v": "value"}
    return (
        *pair(f"{ours}/patches", f"{encoder}patch_embeddings.{number}.proj", CONV),
        *norm(f"{ours}/patch_norm", f"{encoder}patch_embeddings.{number}.layer_norm"),
        *norm(f"{layers}/attn_norm", theirs + "layer_norm_1"),
        *(Row(f"{layers}/attn/{n}", f"{attention}self.{name}.weight", linear()) for n, name in names.items()),
        *(Row(f"{layers}/attn/{n}_bias", f"{attention}self.{name}.bias", VECTOR) for n, name in names.items()),
        Row(f"{layers}/attn/o", attention + "output.dense.weight", linear(in_dims=2)),
        Row(f"{layers}/attn/o_bias", attention + "output.dense.bias"),
        *pair(f"{layers}/reduction/conv", attention + "self.sr", CONV),
        *norm(f"{layers}/reduction/norm", attention + "self.layer_norm"),
        *norm(f"{layers}/mlp_norm", theirs + "layer_norm_2"),
        *pair(f"{layers}/mlp/up", theirs + "mlp.dense1", linear()),
        *pair(f"{layers}/mlp/conv", theirs + "mlp.dwconv.dwconv", CONV),
        *pair(f"{layers}/mlp/down", theirs + "mlp.dense2", linear()),
        *norm(f"{ours}/norm", f"{encoder}layer_norm.{number}"),
        *pair(f"decoder/project{number}", f"decode_head.linear_c.{number}.proj", linear()),
    )


ROWS = (
    *(row for number in range(MAX_STAGES) for row in stage(number)),
    Row("decoder/fuse", "decode_head.linear_fuse.weight", PLACE),
    *norm("decoder/norm", "decode_head.batch_norm"),
    Row("decoder/norm/mean", "decode_head.batch_norm.running_mean"),
    Row("decoder/norm/var", "decode_head.batch_norm.running_var"),
    *pair("decoder/head", "decode_head.classifier", PLACE),
)
IGNORED = (r".*\.num_batches_tracked",)  # a counter that batch norm with a fixed momentum ignores


def from_hf(hf: dict) -> SegformerConfig:
    """The SegformerConfig that a config.json of transformers' SegformerForSemanticSegmentation
    describes.

    The image size is 512 x 512, as in most training runs: no config.json states it, and the weights
    do not depend on it. Raises ValueError where a list has not one entry per stage.
    """
    check_fixed(hf, hidden_act=tuple(ACTIVATIONS), reshape_last_stage=True)
    # Reading the key makes `check_unread` accept it. transformers' layers ignore it as well.
    hf.get("layer_norm_eps")
    stages = hf.get("num_encoder_blocks", 4)
    if stages > MAX_STAGES:
        raise ValueError(f"config.json: num_encoder_blocks = {stages} is not supported; supported: 1 to {MAX_STAGES}")
    lists = {ours: tuple(read_as(hf, theirs, COUNTS)) for ours, theirs in TUPLES.items()}
    for ours, found in lists.items():
        if len(found) != stages:
            raise ValueError(
                f"config.json: {TUPLES[ours]} = {list(found)}; it must have num_encoder_blocks = {stages} entries"
            )
    return SegformerConfig(
        image_shape=(512, 512, hf.get("num_channels", 3)),
        num_classes=num_classes_from_hf(hf),
        **lists,
        decoder_dim=hf["decoder_hidden_size"],
        dropout=hf.get("classifier_dropout_prob", 0.1),
        activation=ACTIVATIONS[hf["hidden_act"]],
        init_std=hf.get("initializer_range", 0.02),
    )


def to_hf(cfg: SegformerConfig) -> dict:
    """The config.json of transformers' SegformerForSemanticSegmentation for this config."""
    if len(cfg.depths) > MAX_STAGES:
        raise ValueError(f"model.depths = {cfg.depths}: a published form has at most {MAX_STAGES} stages")
    return {
        "model_type": "segformer",
        "num_channels": cfg.image_shape[2],
        "num_encoder_blocks": len(cfg.depths),
        **{theirs: list(getattr(cfg, ours)) for ours, theirs in TUPLES.items()},
        "decoder_hidden_size": cfg.decoder_dim,
        "hidden_act": THEIR_ACTIVATIONS.get(cfg.activation, cfg.activation),
        "classifier_dropout_prob": cfg.dropout,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "initializer_range": cfg.init_std,
        "reshape_last_stage": True,
        **labels_to_hf(cfg.num_classes),
    }


SEGFORMER = Family("SegformerForSemanticSegmentation", SegformerConfig, from_hf, to_hf, ROWS, IGNORED)
