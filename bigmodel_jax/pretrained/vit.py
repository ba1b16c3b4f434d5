"""ViT's tensor names and config.json, and helpers that other vision families share."""

from bigmodel_jax.models.vit import ViTConfig
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import CONV, VECTOR, Row, linear

LAYER = "vit.encoder.layer.{i}."


def attention(layer: str) -> tuple[Row, ...]:
    """The name-table rows of a layer's attention: queries, keys, values and output.

    layer: the prefix of their names.
    """
    inner, names = f"{layer}attention.attention.", {"q": "query", "k": "key", "v": "value"}
    return (
        *(Row(f"layers/attn/{ours}", f"{inner}{theirs}.weight", linear()) for ours, theirs in names.items()),
        *(Row(f"layers/attn/{ours}_bias", f"{inner}{theirs}.bias", VECTOR) for ours, theirs in names.items()),
        Row("layers/attn/o", f"{layer}attention.output.dense.weight", linear(in_dims=2)),
        Row("layers/attn/o_bias", f"{layer}attention.output.dense.bias"),
    )


ROWS = (
    # Their tensors have a leading axis of length 1 for the batch.
    Row("cls", "vit.embeddings.cls_token", VECTOR._replace(theirs=lambda x: x[None])),
    Row("positions", "vit.embeddings.position_embeddings", VECTOR._replace(theirs=lambda x: x[None])),
    Row("patches/kernel", "vit.embeddings.patch_embeddings.projection.weight", CONV),
    Row("patches/bias", "vit.embeddings.patch_embeddings.projection.bias"),
    Row("layers/attn_norm/scale", LAYER + "layernorm_before.weight"),
    Row("layers/attn_norm/bias", LAYER + "layernorm_before.bias"),
    *attention(LAYER),
    Row("layers/mlp_norm/scale", LAYER + "layernorm_after.weight"),
    Row("layers/mlp_norm/bias", LAYER + "layernorm_after.bias"),
    Row("layers/mlp/up/kernel", LAYER + "intermediate.dense.weight", linear()),
    Row("layers/mlp/up/bias", LAYER + "intermediate.dense.bias"),
    Row("layers/mlp/down/kernel", LAYER + "output.dense.weight", linear()),
    Row("layers/mlp/down/bias", LAYER + "output.dense.bias"),
    Row("norm/scale", "vit.layernorm.weight"),
    Row("norm/bias", "vit.layernorm.bias"),
    Row("head/kernel", "classifier.weight", linear()),
    Row("head/bias", "classifier.bias"),
)
IGNORED = (r"vit\.pooler\..*",)  # the bare encoder's pooler in older files, unused by a classifier

# transformers' names of activations -> ours, and back.
# gelu_new and gelu_pytorch_tanh are two names of the tanh approximation.
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def image_shape_from_hf(hf: dict) -> tuple[int, int, int]:
    """(height, width, channels) of the images."""
    size = hf["image_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return height, width, hf.get("num_channels", 3)


def patch_size_from_hf(hf: dict) -> int:
    """The side of a patch in pixels; [4, 4] gives 4.

    Raises ValueError for patches that are not square.
    """
    size = hf["patch_size"]
    sides = size if isinstance(size, list) else [size]
    if len(set(sides)) > 1:
        raise ValueError(f"config.json: patch_size = {size} is not supported; supported: square patches")
    return sides[0]


def image_shape_to_hf(shape: tuple[int, int, int]) -> dict:
    """The config.json keys of the image shape (height, width, channels)."""
    height, width, channels = shape
    return {"image_size": height if height == width else [height, width], "num_channels": channels}


def encoder_from_hf(hf: dict) -> dict:
    """The config fields that all pre-norm encoders share, read from a config.json."""
    check_fixed(hf, hidden_act=tuple(ACTIVATIONS))
    return {
        "num_layers": hf["num_hidden_layers"],
        "embed_dim": hf["hidden_size"],
        "num_heads": hf["num_attention_heads"],
        "mlp_dim": hf["intermediate_size"],
        "activation": ACTIVATIONS[hf["hidden_act"]],
        "norm_eps": hf["layer_norm_eps"],
    }


def encoder_to_hf(cfg) -> dict:
    """The config.json keys that all pre-norm encoders share; the inverse of `encoder_from_hf`."""
    return {
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.embed_dim,
        "num_attention_heads": cfg.num_heads,
        "intermediate_size": cfg.mlp_dim,
        "hidden_act": THEIR_ACTIVATIONS.get(cfg.activation, cfg.activation),
        "layer_norm_eps": cfg.norm_eps,
    }


def from_hf(hf: dict) -> ViTConfig:
    """The ViTConfig that a config.json of transformers' ViTForImageClassification describes."""
    check_fixed(hf, model_type="vit", qkv_bias=True, head_dim=(hf["hidden_size"] // hf["num_attention_heads"], None))
    return ViTConfig(
        image_shape=image_shape_from_hf(hf),
        patch_size=patch_size_from_hf(hf),
        num_classes=num_classes_from_hf(hf),
        init_std=hf.get("initializer_range", 0.02),
        **encoder_from_hf(hf),
    )


def to_hf(cfg: ViTConfig) -> dict:
    """The config.json of transformers' ViTForImageClassification for this config."""
    return {
        "model_type": "vit",
        **image_shape_to_hf(cfg.image_shape),
        "patch_size": cfg.patch_size,
        **encoder_to_hf(cfg),
        "initializer_range": cfg.init_std,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **labels_to_hf(cfg.num_classes),
    }


VIT = Family("ViTForImageClassification", ViTConfig, from_hf, to_hf, ROWS, IGNORED)
