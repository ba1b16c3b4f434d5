"""Holds what vision-language families share: rows of both towers, and parts of config.json."""

import dataclasses
import re

from bigmodel_jax.models.clip import VisionTower
from bigmodel_jax.models.vision_language import VisionLanguageConfig
from bigmodel_jax.pretrained import clip, llama, siglip
from bigmodel_jax.pretrained.names import CONV, SAME, Row

# The defaults of transformers' LlamaConfig, for keys that a nested table leaves out.
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
    """The name-table rows of an image tower whose tensors' names begin with `theirs`.

    They include the layers and the norm that no output of the model reads.
    """
    ends = tuple(
        Row(f"vision/{ours}", f"{theirs}.{name}", layout)
        for ours, name, layout in (
            ("patches/kernel", "embeddings.patch_embedding.weight", CONV),
            ("patches/bias", "embeddings.patch_embedding.bias", SAME),
            ("positions", "embeddings.position_embedding.weight", SAME),
            ("cls", "embeddings.class_embedding", SAME),
        )
    )
    # The text decoder reads the output of an inner layer of the tower. The later layers are kept
    # under "unread", so that an export can write them.
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
    """Llama's rows (which are Gemma's too) with other prefixes.

    body: stands instead of "model"; head: stands instead of "lm_head".
    """
    return tuple(dataclasses.replace(row, theirs=inside(row.theirs, body, head)) for row in llama.ROWS)


def inside(name: str, body: str, head: str) -> str:
    """A decoder's tensor name with `body` instead of "model" and `head` instead of "lm_head"."""
    return re.sub(r"^lm_head", head, re.sub(r"^model", body, name))


def ignored(head: str) -> tuple[str, ...]:
    """`Family.ignored` of a vision-language family. head: the name of the tied head."""
    return (r".*rotary_emb\.inv_freq", r".*\.position_ids", rf"{re.escape(head)}\.weight")


def copies(body: str, head: str) -> tuple[tuple[str, str], ...]:
    """`Family.copies` of a vision-language family: the tied head."""
    return tuple((inside(copy, body, head), inside(original, body, head)) for copy, original in llama.COPIES)


def vision_from_hf(hf: dict, defaults: dict) -> VisionTower:
    """The image tower that the file's `vision_config` describes.

    defaults: for keys that it leaves out.
    """
    return clip.vision_from_hf(hf.get("vision_config") or {}, defaults)


def vision_to_hf(cfg: VisionLanguageConfig, model_type: str) -> dict:
    """The `vision_config` of the image tower."""
    return {"model_type": model_type, **clip.vision_to_hf(cfg.vision)}


def check_form(cfg: VisionLanguageConfig, family: str, **expected: object) -> None:
    """Raises ValueError where a field is not what the family's files imply.

    family: its name for messages; expected: the only supported value of each field.
    """
    for name, value in expected.items():
        if getattr(cfg, name) != value:
            raise ValueError(f"model.{name} = {getattr(cfg, name)!r}; a {family} has {value!r}")
