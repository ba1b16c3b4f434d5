"""PaliGemma's tensor names and config.json."""

from bigmodel_jax.models.paligemma import PaliGemmaConfig
from bigmodel_jax.pretrained import clip, gemma
from bigmodel_jax.pretrained import vision_language as shared
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.llava import BODY, HEAD, RENAMED

ROWS = (
    *shared.text_rows(BODY, HEAD),
    *shared.vision_rows("vision_tower.vision_model"),
    *clip.dense("connector/up", "multi_modal_projector.linear"),
)
# The defaults of transformers' classes for keys that `text_config` leaves out.
TEXT = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def from_hf(hf: dict) -> PaliGemmaConfig:
    """The PaliGemmaConfig that a config.json of transformers' PaliGemmaForConditionalGeneration
    describes.

    Raises ValueError unless the decoder is the first Gemma and the image encoder is SigLIP's
    without its head.
    """
    text, vision = TEXT | hf["text_config"], hf["vision_config"]
    check_fixed(text, model_type="gemma", use_bidirectional_attention=(True, None), tie_word_embeddings=True)
    # SigLIP's class has the head where the file does not say, so a missing key is refused.
    check_fixed({"vision_use_head": True} | vision, model_type="siglip_vision_model", vision_use_head=False)
    check_fixed(hf, tie_word_embeddings=True)
    for table in (hf, vision):
        check_fixed(table, projection_dim=(text["hidden_size"], None))
    check_fixed(hf, hidden_size=(text["hidden_size"], None))
    # Reading the key makes `check_unread` accept it. transformers only checks with it whether the
    # image's token lies in the table.
    hf.get("vocab_size")
    return PaliGemmaConfig(
        vision=shared.vision_from_hf(hf, shared.SIGLIP_VISION),
        # The bidirectional prefix is this family's own, and Gemma's reader refuses the flag.
        text=gemma.gemma_from_hf(text | {"use_bidirectional_attention": False}),
        image_token_id=hf.get("image_token_index", 256_000),
    )


def to_hf(cfg: PaliGemmaConfig) -> dict:
    """The config.json of transformers' PaliGemmaForConditionalGeneration for this config."""
    form = {"tower": "siglip", "connector": "linear", "connector_bias": True, "shuffle": 1, "prefix_mask": True}
    shared.check_form(cfg, "paligemma", feature_layer=-1, **form)
    width = cfg.text.embed_dim
    text = gemma.to_hf(cfg.text, model_type="gemma") | {"use_bidirectional_attention": True}
    vision = shared.vision_to_hf(cfg, "siglip_vision_model") | {"projection_dim": width, "vision_use_head": False}
    return {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": cfg.image_token_id,
        "projection_dim": width,
        "hidden_size": width,
        "vocab_size": cfg.vocab_size,
        "tie_word_embeddings": True,
    }


PALIGEMMA = Family(
    "PaliGemmaForConditionalGeneration",
    PaliGemmaConfig,
    from_hf,
    to_hf,
    ROWS,
    shared.ignored(HEAD),
    renamed=RENAMED,
    copies=shared.copies(BODY, HEAD),
)
