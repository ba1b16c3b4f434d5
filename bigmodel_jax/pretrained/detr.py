"""DETR's tensor names and config.json.

The backbone is a ResNet of transformers or of timm, whose names differ.
"""

from bigmodel_jax.models.detr import DetrConfig
from bigmodel_jax.pretrained import resnet
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import VECTOR, Row, linear
from bigmodel_jax.pretrained.segformer import PLACE, norm, pair
from bigmodel_jax.pretrained.vit import ACTIVATIONS as SMOOTH
from bigmodel_jax.pretrained.vit import THEIR_ACTIVATIONS

ACTIVATIONS = {"relu": "relu"} | SMOOTH
RESNET = "model.backbone.conv_encoder.model."
BOTTLENECKS = (256, 512, 1024, 2048)
TIMM = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}  # blocks per stage of timm's ResNets


def attention(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one attention. ours: its parameter path; theirs: its module name."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
    return (
        *(Row(f"{ours}/{n}", f"{theirs}.{name}.weight", linear()) for n, name in names.items()),
        *(Row(f"{ours}/{n}_bias", f"{theirs}.{name}.bias", VECTOR) for n, name in names.items()),
        Row(f"{ours}/o", f"{theirs}.out_proj.weight", linear(in_dims=2)),
        Row(f"{ours}/o_bias", f"{theirs}.out_proj.bias"),
    )


def layers(name: str) -> tuple[Row, ...]:
    """The name-table rows of the encoder's or the decoder's layers. name: "encoder" or "decoder".

    The encoder has no parameters for the rows of cross-attention, so they are skipped.
    """
    theirs = f"model.{name}.layers.{{i}}."
    return (
        *attention(f"{name}/attn", theirs + "self_attn"),
        *norm(f"{name}/attn_norm", theirs + "self_attn_layer_norm"),
        *attention(f"{name}/cross", theirs + "encoder_attn"),
        *norm(f"{name}/cross_norm", theirs + "encoder_attn_layer_norm"),
        *pair(f"{name}/mlp/up", theirs + "fc1", linear()),
        *pair(f"{name}/mlp/down", theirs + "fc2", linear()),
        *norm(f"{name}/mlp_norm", theirs + "final_layer_norm"),
    )


ROWS = (
    *resnet.trunk("backbone/", RESNET),
    *pair("project", "model.input_projection", PLACE),
    *layers("encoder"),
    *layers("decoder"),
    *norm("decoder_norm", "model.decoder.layernorm"),
    Row("queries", "model.query_position_embeddings.weight"),
    *pair("classes", "class_labels_classifier", linear()),
    # DETR's box head has three layers, whatever the size of the model.
    *(row for n in range(3) for row in pair(f"box/layer{n}", f"bbox_predictor.layers.{n}", linear())),
)
IGNORED = (r".*\.num_batches_tracked",)  # a counter that batch norm with frozen statistics ignores


def _timm_names() -> tuple[tuple[str, str], ...]:
    """(pattern, replacement) pairs that turn timm's names of a ResNet into transformers' names."""
    start = r"(conv_encoder\.model\.)"
    kinds = (("conv", "convolution"), ("bn", "normalization"))
    found = [(rf"{start}{theirs}1\.", rf"\1embedder.embedder.{name}.") for theirs, name in kinds]
    # timm counts stages and convolutions from 1, and transformers counts them from 0.
    for stage in range(4):
        at, to = rf"{start}layer{stage + 1}\.(\d+)\.", rf"\1encoder.stages.{stage}.layers.\2."
        for theirs, name in kinds:
            found += [(rf"{at}{theirs}{n + 1}\.", rf"{to}layer.{n}.{name}.") for n in range(3)]
        found += [(rf"{at}downsample\.{n}\.", rf"{to}shortcut.{name}.") for n, (_, name) in enumerate(kinds)]
    return tuple(found)


# Newer files may use the module names of transformers 5.
NEWER = (
    (r"^model\.backbone\.model\.", RESNET),
    (r"\.o_proj\.", ".out_proj."),
    (r"(layers\.\d+)\.mlp\.(fc[12])\.", r"\1.\2."),
)


def backbone_from_hf(hf: dict) -> dict:
    """The config fields of the backbone, from a ResNet's `backbone_config` or the name of a timm
    network.

    Raises ValueError for another backbone. Raises KeyError where the file names no backbone.
    """
    table, flag = hf.get("backbone_config"), hf.get("use_timm_backbone", True)
    if table and table.get("model_type") == "resnet":
        check_fixed(table, hidden_act="relu", downsample_in_first_stage=False, downsample_in_bottleneck=False)
        check_fixed(table, layer_type=("bottleneck", "basic"), num_channels=hf.get("num_channels", 3))
        return {
            "depths": tuple(table.get("depths", (3, 4, 6, 3))),
            "channels": tuple(table.get("hidden_sizes", BOTTLENECKS)),
            "stem_channels": table.get("embedding_size", 64),
            "block": table.get("layer_type", "bottleneck"),
        }
    # Older files leave out timm's resnet50, because it is the class's default.
    name = (table or hf).get("backbone", "resnet50" if flag else None)
    if not table and name is None:
        raise KeyError("backbone_config")
    if name not in TIMM or (table and table.get("model_type") != "timm_backbone"):
        kind = name or (table or {}).get("model_type")
        raise ValueError(f"config.json: backbone = {kind!r} is not supported; supported: resnet, {', '.join(TIMM)}")
    return {"depths": TIMM[name], "channels": BOTTLENECKS, "stem_channels": 64, "block": "bottleneck"}


def from_hf(hf: dict) -> DetrConfig:
    """The DetrConfig that a config.json of transformers' DetrForObjectDetection describes.

    The image size is 800 x 800: no config.json states it, and the network's weights do not depend
    on it.
    """
    check_fixed(hf, position_embedding_type="sine", dilation=False, scale_embedding=False)
    # Our config has one number of heads and one MLP width for both stacks.
    check_fixed(hf, activation_function=tuple(ACTIVATIONS), decoder_attention_heads=hf["encoder_attention_heads"])
    check_fixed(hf, decoder_ffn_dim=hf["encoder_ffn_dim"], is_encoder_decoder=True)
    return DetrConfig(
        image_shape=(800, 800, hf.get("num_channels", 3)),
        num_classes=num_classes_from_hf(hf),
        num_queries=hf.get("num_queries", 100),
        **backbone_from_hf(hf),
        embed_dim=hf["d_model"],
        num_heads=hf["encoder_attention_heads"],
        mlp_dim=hf["encoder_ffn_dim"],
        num_layers=hf["encoder_layers"],
        num_decoder_layers=hf["decoder_layers"],
        activation=ACTIVATIONS[hf.get("activation_function", "relu")],
        dropout=hf.get("dropout", 0.1),
        init_std=hf.get("init_std", 0.02),
    )


def to_hf(cfg: DetrConfig) -> dict:
    """The config.json of transformers' DetrForObjectDetection, with a ResNet backbone of
    transformers.

    Raises ValueError for queries that are not learned and for a stem other than ImageNet's.
    """
    if cfg.queries != "learned":
        raise ValueError(f"model.queries = {cfg.queries!r}: the published architecture has queries = 'learned'")
    stages = [f"stage{n + 1}" for n in range(len(cfg.depths))]
    used = {"stage_names": ["stem", *stages], "out_features": stages[-1:], "out_indices": [len(stages)]}
    return {
        "model_type": "detr",
        "use_timm_backbone": False,
        "backbone_config": resnet.trunk_to_hf(cfg.trunk()) | used,
        "num_channels": cfg.image_shape[2],
        "num_queries": cfg.num_queries,
        "d_model": cfg.embed_dim,
        **{f"{side}_attention_heads": cfg.num_heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": cfg.mlp_dim for side in ("encoder", "decoder")},
        "encoder_layers": cfg.num_layers,
        "decoder_layers": cfg.num_decoder_layers,
        "activation_function": THEIR_ACTIVATIONS.get(cfg.activation, cfg.activation),
        "position_embedding_type": "sine",
        "dilation": False,
        "dropout": cfg.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "init_std": cfg.init_std,
        **labels_to_hf(cfg.num_classes),
    }


DETR = Family("DetrForObjectDetection", DetrConfig, from_hf, to_hf, ROWS, IGNORED, renamed=(*NEWER, *_timm_names()))
