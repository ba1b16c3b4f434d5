"""DINOv2's tensor names and config.json, with and without registers.

The model is `models/vit.py`, whose config fields select DINOv2's layers.
"""

import dataclasses
import functools

from bigmodel_jax.models.vit import ViTConfig
from bigmodel_jax.pretrained import vit
from bigmodel_jax.pretrained.family import Family, OtherArchitecture, check_fixed
from bigmodel_jax.pretrained.labels import labels_to_hf, num_classes_from_hf
from bigmodel_jax.pretrained.names import CONV, VECTOR, Row, linear

LAYER = "encoder.layer.{i}."
# Names in a file of the bare encoder. A classifier's file puts "dinov2." or
# "dinov2_with_registers." before each of them.
ENCODER = (
    # Their tensors have a leading axis of length 1 for the batch.
    Row("cls", "embeddings.cls_token", VECTOR._replace(theirs=lambda x: x[None])),
    Row("registers", "embeddings.register_tokens", VECTOR._replace(theirs=lambda x: x[None])),
    Row("positions", "embeddings.position_embeddings", VECTOR._replace(theirs=lambda x: x[None])),
    Row("patches/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
    Row("patches/bias", "embeddings.patch_embeddings.projection.bias"),
    Row("layers/attn_norm/scale", LAYER + "norm1.weight"),
    Row("layers/attn_norm/bias", LAYER + "norm1.bias"),
    *vit.attention(LAYER),
    Row("layers/attn_scale", LAYER + "layer_scale1.lambda1"),
    Row("layers/mlp_norm/scale", LAYER + "norm2.weight"),
    Row("layers/mlp_norm/bias", LAYER + "norm2.bias"),
    # A config has either the plain MLP's parameters or, below, those of the gated one. The other
    Row("layers/mlp/up/kernel", LAYER + "mlp.fc1.weight", linear()),
    Row("layers/mlp/up/bias", LAYER + "mlp.fc1.bias"),
    Row("layers/mlp/down/kernel", LAYER + "mlp.fc2.weight", linear()),
    Row("layers/mlp/down/bias", LAYER + "mlp.fc2.bias"),
    Row(("layers/mlp/gate", "layers/mlp/up"), LAYER + "mlp.weights_in.weight", linear()),
    Row(("layers/mlp/gate_bias", "layers/mlp/up_bias"), LAYER + "mlp.weights_in.bias"),
    Row("layers/mlp/down", LAYER + "mlp.weights_out.weight", linear()),
    Row("layers/mlp/down_bias", LAYER + "mlp.weights_out.bias"),
    Row("layers/mlp_scale", LAYER + "layer_scale2.lambda1"),
    Row("norm/scale", "layernorm.weight"),
    Row("norm/bias", "layernorm.bias"),
)
HEAD = (Row("head/kernel", "classifier.weight", linear()), Row("head/bias", "classifier.bias"))
IGNORED = (r"(.*\.)?embeddings\.mask_token",)  # replaces the patches that pretraining masks
MOST_RATIO = 64
REGISTERS = "dinov2_with_registers"


def from_hf(head: str, registers: bool, hf: dict) -> ViTConfig:
    """The ViTConfig that a config.json of transformers' Dinov2 or Dinov2WithRegisters classes
    describes.

    head: "none" for the bare encoder, else the classifier's head. registers: whether the class is
    one with registers. Raises ValueError for images that are not square.
    """
    check_fixed(hf, model_type=REGISTERS if registers else "dinov2", qkv_bias=True, hidden_act=tuple(vit.ACTIVATIONS))
    shape = vit.image_shape_from_hf(hf)
    if shape[0] != shape[1]:
        raise ValueError(f"config.json: image_size = {hf['image_size']} is not supported; supported: a square")
    gated = hf.get("use_swiglu_ffn", False)
    return ViTConfig(
        image_shape=shape,
        patch_size=vit.patch_size_from_hf(hf),
        num_classes=ViTConfig.num_classes if head == "none" else num_classes_from_hf(hf),
        num_layers=hf["num_hidden_layers"],
        embed_dim=hf["hidden_size"],
        num_heads=hf["num_attention_heads"],
        mlp_dim=width_of(hf["hidden_size"], hf["mlp_ratio"], gated),
        activation=vit.ACTIVATIONS[hf["hidden_act"]],
        norm_eps=hf["layer_norm_eps"],
        init_std=hf.get("initializer_range", 0.02),
        head=head,
        layer_scale=hf.get("layerscale_value", 1.0),
        num_registers=hf["num_register_tokens"] if registers else 0,
        gated_mlp=gated,
    )


def width_of(dim: int, ratio: int, gated: bool) -> int:
    """The width of the feed-forward layer.

    dim: the model's width; ratio: `mlp_ratio`. A gated (SwiGLU) layer has two thirds of dim *
    ratio, rounded up to a multiple of 8.
    """
    # The reference rounds two thirds down to a whole number before it rounds up.
    return (int(dim * ratio * 2 / 3) + 7) // 8 * 8 if gated else dim * ratio


def ratio_of(cfg: ViTConfig) -> int:
    """The `mlp_ratio` that gives the feed-forward width of the config.

    Raises ValueError if none does.
    """
    for ratio in range(1, MOST_RATIO + 1):
        if width_of(cfg.embed_dim, ratio, cfg.gated_mlp) == cfg.mlp_dim:
            return ratio
    kind = "two thirds of a multiple, rounded up to a multiple of 8," if cfg.gated_mlp else "a multiple"
    raise ValueError(f"model.mlp_dim = {cfg.mlp_dim}: DINOv2's is {kind} of model.embed_dim = {cfg.embed_dim}")


def to_hf(head: str, registers: bool, cfg: ViTConfig) -> dict:
    """The config.json of the Dinov2 class with this head, with or without registers.

    Raises OtherArchitecture where the config belongs to another of these classes, and ValueError
    where none of them has its fields.
    """
    if cfg.head != head or bool(cfg.num_registers) != registers:
        raise OtherArchitecture(
            f"model.head = {cfg.head!r}, model.num_registers = {cfg.num_registers}: the architecture has the head {head!r} "
            f"and {'1 or more registers' if registers else 'no registers'}"
        )
    if not cfg.layer_scale or cfg.image_shape[0] != cfg.image_shape[1]:
        raise ValueError(
            f"model.layer_scale = {cfg.layer_scale}, model.image_shape = {cfg.image_shape}: the architecture has a scale "
            "above 0 and square images"
        )
    # Our model has no mask token, which pretraining alone uses.
    mask = {"num_register_tokens": cfg.num_registers} if registers else {"use_mask_token": False}
    return {
        "model_type": REGISTERS if registers else "dinov2",
        **vit.image_shape_to_hf(cfg.image_shape),
        "patch_size": cfg.patch_size,
        # DINOv2's class has `mlp_ratio` instead of `intermediate_size`.
        **{name: x for name, x in vit.encoder_to_hf(cfg).items() if name != "intermediate_size"},
        "mlp_ratio": ratio_of(cfg),
        "use_swiglu_ffn": cfg.gated_mlp,
        "layerscale_value": cfg.layer_scale,
        **mask,
        "initializer_range": cfg.init_std,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        **({} if head == "none" else labels_to_hf(cfg.num_classes)),
    }


def _families(name: str, prefix: str, registers: bool) -> tuple[Family, Family]:
    """The families of the bare encoder and of the classifier.

    prefix: what a classifier's names begin with.
    """
    inside = tuple(dataclasses.replace(row, theirs=prefix + row.theirs) for row in ENCODER)
    write = functools.partial(to_hf, "none", registers), functools.partial(to_hf, "class_and_mean", registers)
    read = functools.partial(from_hf, "none", registers), functools.partial(from_hf, "class_and_mean", registers)
    return (
        Family(f"{name}Model", ViTConfig, read[0], write[0], ENCODER, IGNORED),
        Family(f"{name}ForImageClassification", ViTConfig, read[1], write[1], (*inside, *HEAD), IGNORED),
    )


DINOV2 = (
    *_families("Dinov2", "dinov2.", registers=False),
    *_families("Dinov2WithRegisters", f"{REGISTERS}.", registers=True),
)
