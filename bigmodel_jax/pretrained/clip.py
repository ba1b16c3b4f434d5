"""CLIP's tensor names and config.json.

SigLIP shares most of the names, because transformers copied them.
"""

from bigmodel_jax.models.clip import CLIPConfig, TextTower, VisionTower
from bigmodel_jax.pretrained.family import Family
from bigmodel_jax.pretrained.names import CONV, SAME, VECTOR, Row, dense, layer_norm, linear
from bigmodel_jax.pretrained.vit import (
    encoder_from_hf,
    encoder_to_hf,
    image_shape_from_hf,
    image_shape_to_hf,
    patch_size_from_hf,
)


def layers(ours: str, theirs: str) -> tuple[Row, ...]:
    """The name-table rows of one tower's encoder layers.

    ours, theirs: what precedes `layers` in our path and `encoder.layers` in their names.
    """
    attn, layer = f"{ours}/layers/attn/", f"{theirs}.encoder.layers.{{i}}."
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
    return (
        *(Row(attn + n, f"{layer}self_attn.{name}.weight", linear()) for n, name in names.items()),
        *(Row(f"{attn}{n}_bias", f"{layer}self_attn.{name}.bias", VECTOR) for n, name in names.items()),
        Row(attn + "o", layer + "self_attn.out_proj.weight", linear(in_dims=2)),
        Row(attn + "o_bias", layer + "self_attn.out_proj.bias"),
        *layer_norm(f"{ours}/layers/attn_norm", layer + "layer_norm1"),
        *layer_norm(f"{ours}/layers/mlp_norm", layer + "layer_norm2"),
        *dense(f"{ours}/layers/mlp/up", layer + "mlp.fc1"),
        *dense(f"{ours}/layers/mlp/down", layer + "mlp.fc2"),
    )


TOWERS = (
    Row("vision/patches/kernel", "vision_model.embeddings.patch_embedding.weight", CONV),
    Row("vision/patches/bias", "vision_model.embeddings.patch_embedding.bias"),
    Row("vision/positions", "vision_model.embeddings.position_embedding.weight"),
    *layers("vision", "vision_model"),
    *layer_norm("vision/norm", "vision_model.post_layernorm"),
    Row("text/embed/table", "text_model.embeddings.token_embedding.weight"),
    Row("text/positions", "text_model.embeddings.position_embedding.weight"),
    *layers("text", "text_model"),
    *layer_norm("text/norm", "text_model.final_layer_norm"),
    Row("logit_scale", "logit_scale", SAME),
)
ROWS = (
    *TOWERS,
    Row("vision/cls", "vision_model.embeddings.class_embedding"),
    *layer_norm("vision/pre_norm", "vision_model.pre_layrnorm"),  # published files misspell it so
    Row("vision/head/kernel", "visual_projection.weight", linear()),
    Row("text/head/kernel", "text_projection.weight", linear()),
)
IGNORED = (r".*\.position_ids",)  # a buffer of older files that holds 0, 1, 2, ...


def vision_from_hf(hf: dict, defaults: dict) -> VisionTower:
    """The image tower that a `vision_config` describes (transformers' CLIPVisionConfig).

    defaults: values for the keys that the table leaves out. transformers leaves out what equals the
    class's defaults.
    """
    hf = defaults | hf
    return VisionTower(image_shape=image_shape_from_hf(hf), patch_size=patch_size_from_hf(hf), **encoder_from_hf(hf))


def text_from_hf(hf: dict, defaults: dict) -> TextTower:
    """The text tower that a `text_config` describes (transformers' CLIPTextConfig).

    defaults: as in `vision_from_hf`.
    """
    hf = defaults | hf
    return TextTower(vocab_size=hf["vocab_size"], max_seq_len=hf["max_position_embeddings"], **encoder_from_hf(hf))


def vision_to_hf(tower: VisionTower) -> dict:
    """The keys of a `vision_config` for the image tower, without its model type."""
    return {**image_shape_to_hf(tower.image_shape), "patch_size": tower.patch_size, **encoder_to_hf(tower)}


def text_to_hf(tower: TextTower) -> dict:
    """The keys of a `text_config` for the text tower, without its model type."""
    sizes = {"vocab_size": tower.vocab_size, "max_position_embeddings": tower.max_seq_len}
    return {**sizes, **encoder_to_hf(tower)}


# The defaults of transformers' CLIPVisionConfig and CLIPTextConfig.
LAYERS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224, "patch_size": 32}
TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
VOCABULARY = {"vocab_size": 49_408, "max_position_embeddings": 77}


def tower(hf: dict, name: str) -> dict:
    """The table of one tower. name: "text_config" or "vision_config".

    Older files have `text_config_dict` and `vision_config_dict`. Where such a table is there,
    transformers reads it instead of the newer one.
    """
    new, old = hf.get(name) or {}, hf.get(f"{name}_dict")
    return new if old is None else old


def from_hf(hf: dict) -> CLIPConfig:
    """The CLIPConfig that a config.json of transformers' CLIPModel describes."""
    text, vision = tower(hf, "text_config"), tower(hf, "vision_config")
    return CLIPConfig(
        vision=vision_from_hf(vision, LAYERS | VISION),
        text=text_from_hf(text, LAYERS | TEXT | VOCABULARY),
        projection_dim=hf.get("projection_dim", 512),
        eos_token_id=text.get("eos_token_id", 49_407),
        logit_scale_init=hf.get("logit_scale_init_value", 2.6592),
    )


def to_hf(cfg: CLIPConfig) -> dict:
    """The config.json of transformers' CLIPModel for this config."""
    shared = {"projection_dim": cfg.projection_dim}
    return {
        "model_type": "clip",
        "vision_config": {"model_type": "clip_vision_model", **shared, **vision_to_hf(cfg.vision)},
        "text_config": {
            "model_type": "clip_text_model",
            **shared,
            **text_to_hf(cfg.text),
            "eos_token_id": cfg.eos_token_id,
        },
        **shared,
        "logit_scale_init_value": cfg.logit_scale_init,
    }


CLIP = Family("CLIPModel", CLIPConfig, from_hf, to_hf, ROWS, IGNORED)
