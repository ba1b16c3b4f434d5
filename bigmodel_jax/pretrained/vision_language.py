"""What the families of images and text share: their towers' tensors and config.json, and the decoder's names inside theirs."""

import dataclasses
import re

from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.vision_language import VisionLanguageConfig
from bigmodel_jax.pretrained import clip, llama, siglip
from bigmodel_jax.pretrained.names import CONV, SAME, Row

# What transformers' LlamaConfig takes for keys that a table inside a config.json leaves out.
LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
}
SIGLIP_VISION = siglip.LAYERS | siglip.SIZES | siglip.VISION
CLIP_VISION = clip.LAYERS | clip.VISION


def vision_rows(theirs: str) -> tuple[Row, ...]:
    """The rows of a tower whose tensors' names begin with `theirs`, of the layers that nothing reads, too."""
    ends = tuple(
        Row(f"vision/{ours}", f"{theirs}.{name}", layout)
        for ours, name, layout in (
            ("patches/kernel", "embeddings.patch_embedding.weight", CONV),
            ("patches/bias", "embeddings.patch_embedding.bias", SAME),
            ("positions", "embeddings.position_embedding.weight", SAME),
            ("cls", "embeddings.class_embedding", SAME),
        )
    )
    unread = (dataclasses.replace(row, start="read_layers") for row in clip.layers("unread", theirs))
    return (
        *ends,
        *clip.layer_norm("vision/pre_norm", f"{theirs}.pre_layrnorm"),
        *clip.layers("vision", theirs),
        *unread,
        *clip.layer_norm("vision/norm", f"{theirs}.post_layernorm"),
        *clip.layer_norm("unread/norm", f"{theirs}.post_layernorm"),
    )


def text_rows(body: str, head: str) -> tuple[Row, ...]:
    """Llama's rows (which are Gemma's), where theirs begin with `body` instead of "model", and the head with `head`."""
    return tuple(dataclasses.replace(row, theirs=inside(row.theirs, body, head)) for row in llama.ROWS)


def inside(name: str, body: str, head: str) -> str:
    return re.sub(r"^lm_head", head, re.sub(r"^model", body, name))


def ignored(head: str) -> tuple[str, ...]:
    return (r".*rotary_emb\.inv_freq", r".*\.position_ids", rf"{re.escape(head)}\.weight")


def copies(body: str, head: str) -> tuple[tuple[str, str], ...]:
    return tuple((inside(copy, body, head), inside(original, body, head)) for copy, original in llama.COPIES)


def vision_from_hf(hf: dict, defaults: dict) -> VisionTower:
    return clip.vision_from_hf(hf.get("vision_config") or {}, defaults)


def vision_to_hf(cfg: VisionLanguageConfig, model_type: str) -> dict:
    return {"model_type": model_type, **clip.vision_to_hf(cfg.vision)}


def check_form(cfg: VisionLanguageConfig, family: str, **expected: object) -> None:
    """ValueError where a field says what no file of the family can."""
    for name, value in expected.items():
        if getattr(cfg, name) != value:
            raise ValueError(f"model.{name} = {getattr(cfg, name)!r}; a {family} has {value!r}")
