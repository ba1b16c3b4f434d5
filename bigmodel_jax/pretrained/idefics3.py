"""The tensor names and config.json of Idefics3 and SmolVLM, whose model types alone differ."""

import functools

from bigmodel_jax.models.idefics3 import Idefics3Config, SmolVLMConfig
from bigmodel_jax.pretrained import llama
from bigmodel_jax.pretrained import vision_language as shared
from bigmodel_jax.pretrained.family import Family, check_fixed
from bigmodel_jax.pretrained.names import Row, linear

BODY, HEAD = "model.text_model", "lm_head"
ROWS = (
    *shared.text_rows(BODY, HEAD),
    *shared.vision_rows("model.vision_model"),
    Row("connector/up/kernel", "model.connector.modality_projection.proj.weight", linear()),
)
# The defaults of transformers' vision config, for keys that a file leaves out.
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def from_hf(config: type[Idefics3Config], model_type: str, hf: dict) -> Idefics3Config:
    """The config that a config.json of transformers' Idefics3 or SmolVLM ForConditionalGeneration
    describes.

    config: our class; model_type: "idefics3" or "smolvlm". Raises ValueError unless the decoder is
    a Llama.
    """
    text, vision = hf["text_config"], hf["vision_config"]
    check_fixed(text, model_type="llama")
    check_fixed(vision, model_type=(f"{model_type}_vision", model_type))
    text.get("tie_word_embeddings")  # its kind is checked; transformers ties by the flag beside the tables
    tied = hf.get("tie_word_embeddings", False)
    return config(
        vision=shared.vision_from_hf(hf, VISION),
        text=llama.from_hf(shared.LLAMA | text | {"tie_word_embeddings": tied}),
        shuffle=hf.get("scale_factor", 2),
        image_token_id=hf.get("image_token_id", 128_257),
    )


def to_hf(model_type: str, cfg: Idefics3Config) -> dict:
    """The config.json of transformers' Idefics3 or SmolVLM ForConditionalGeneration for this
    config.
    """
    form = {"tower": "siglip", "connector": "linear", "connector_bias": False, "prefix_mask": False}
    shared.check_form(cfg, model_type, feature_layer=-1, **form)
    return {
        "model_type": model_type,
        "text_config": llama.to_hf(cfg.text),
        "vision_config": shared.vision_to_hf(cfg, f"{model_type}_vision"),
        "scale_factor": cfg.shuffle,
        "image_token_id": cfg.image_token_id,
        "tie_word_embeddings": cfg.text.tied_embeddings,
    }


def family(architecture: str, config: type[Idefics3Config], model_type: str) -> Family:
    """The family of Idefics3 or of SmolVLM."""
    read, write = functools.partial(from_hf, config, model_type), functools.partial(to_hf, model_type)
    return Family(architecture, config, read, write, ROWS, shared.ignored(HEAD), copies=shared.copies(BODY, HEAD))


IDEFICS3 = family("Idefics3ForConditionalGeneration", Idefics3Config, "idefics3")
SMOLVLM = family("SmolVLMForConditionalGeneration", SmolVLMConfig, "smolvlm")
