"""LLaVA's tensor names and config.json."""

from bigmodel_jax.models.llava import LlavaConfig
from bigmodel_jax.pretrained import clip, llama
from bigmodel_jax.pretrained import vision_language as shared
from bigmodel_jax.pretrained.family import Family, check_fixed

BODY, HEAD = "language_model.model", "language_model.lm_head"
ROWS = (
    *shared.text_rows(BODY, HEAD),
    *shared.vision_rows("vision_tower.vision_model"),
    *clip.dense("connector/up", "multi_modal_projector.linear_1"),
    *clip.dense("connector/down", "multi_modal_projector.linear_2"),
)
# Newer versions of transformers write other prefixes: model.language_model, lm_head, and
# vision_tower without vision_model.
RENAMED = (
    (r"^model\.language_model\.", f"{BODY}."),
    (r"^lm_head\.", f"{HEAD}."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
# `vision_feature_select_strategy` -> whether the class token's output reaches the text.
STRATEGIES = {"default": False, "full": True}


def from_hf(hf: dict) -> LlavaConfig:
    """The LlavaConfig that a config.json of transformers' LlavaForConditionalGeneration describes.

    Raises ValueError unless the decoder is a Llama, the image encoder is CLIP's, and its layer is
    counted from the end.
    """
    text, vision = hf["text_config"], hf["vision_config"]
    check_fixed(hf, projector_hidden_act="gelu", vision_feature_select_strategy=tuple(STRATEGIES))
    check_fixed(text, model_type="llama")
    check_fixed(vision, model_type="clip_vision_model")
    layer = hf.get("vision_feature_layer", -2)
    # transformers also accepts a list of layers, whose outputs it joins.
    if not isinstance(layer, int) or layer >= 0:
        raise ValueError(f"config.json: vision_feature_layer = {layer} is not supported; supported: one below 0")
    tied = hf.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False)
    return LlavaConfig(
        vision=shared.vision_from_hf(hf, shared.CLIP_VISION),
        text=llama.from_hf(shared.LLAMA | text | {"tie_word_embeddings": tied}),
        feature_layer=layer,
        class_token=STRATEGIES[hf.get("vision_feature_select_strategy", "default")],
        connector_bias=hf.get("multimodal_projector_bias", True),
        image_token_id=hf.get("image_token_index", 32_000),
    )


def to_hf(cfg: LlavaConfig) -> dict:
    """The config.json of transformers' LlavaForConditionalGeneration for this config."""
    shared.check_form(cfg, "llava", tower="clip", connector="mlp", shuffle=1, prefix_mask=False)
    return {
        "model_type": "llava",
        "text_config": llama.to_hf(cfg.text),
        "vision_config": shared.vision_to_hf(cfg, "clip_vision_model"),
        "vision_feature_layer": cfg.feature_layer,
        "vision_feature_select_strategy": "full" if cfg.class_token else "default",
        "image_token_index": cfg.image_token_id,
        "image_seq_length": cfg.image_tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": cfg.connector_bias,
        "tie_word_embeddings": cfg.text.tied_embeddings,
    }


LLAVA = Family(
    "LlavaForConditionalGeneration",
    LlavaConfig,
    from_hf,
    to_hf,
    ROWS,
    shared.ignored(HEAD),
    renamed=RENAMED,
    copies=shared.copies(BODY, HEAD),
)
