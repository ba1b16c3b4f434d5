"""The tensor names and config.json of three generations of Gemma."""

import dataclasses
import functools

from bigmodel_jax.models.gemma import Gemma2Config, Gemma3Config, GemmaConfig
from bigmodel_jax.pretrained import class_defaults, llama
from bigmodel_jax.pretrained.config_keys import ROPE_KEYS
from bigmodel_jax.pretrained.family import Family, check_fixed, shown
from bigmodel_jax.pretrained.names import Row

# From Gemma 2 on, `post_attention_layernorm` is the norm after attention. In Llama the same name is
# the norm before the MLP.
ROWS = (
    *(row for row in llama.ROWS if row.ours != "layers/mlp_norm/scale"),
    Row("layers/attn_post_norm/scale", "model.layers.{i}.post_attention_layernorm.weight"),
    Row("layers/mlp_norm/scale", "model.layers.{i}.pre_feedforward_layernorm.weight"),
    Row("layers/mlp_post_norm/scale", "model.layers.{i}.post_feedforward_layernorm.weight"),
)
ACTIVATION = "gelu_pytorch_tanh"
# The values of (post_norms, qk_norm) by model type.
NORMS = {"gemma": (False, False), "gemma2": (True, False), "gemma3_text": (True, True)}


def sizes_from_hf(hf: dict) -> dict:
    """The config fields that all generations of Gemma share, read from a config.json.

    Raises ValueError for biases in attention, bidirectional attention and untied embeddings.
    """
    check_fixed(hf, attention_bias=False, use_bidirectional_attention=(False, None), tie_word_embeddings=True)
    # Gemma's class has 256 for a missing head_dim, whatever the width and the number of heads are.
    sizes = llama.sizes_from_hf(hf | {"head_dim": hf.get("head_dim", 256)})
    del sizes["tied_embeddings"]  # a Gemma's embeddings are always tied
    # In our config 0 stands for head_dim, which is the usual divisor of the logits.
    scalar = hf.get("query_pre_attn_scalar", sizes["head_dim"])
    return sizes | {"query_pre_attn_scalar": 0 if scalar == sizes["head_dim"] else scalar}


def local_from_hf(hf: dict, global_every: int) -> dict:
    """The fields `window` and `global_every`, from `layer_types` where the file has it.

    global_every: the default period of layers without a window. Raises ValueError unless every n-th
    layer is global.
    """
    every, types = global_every, hf.get("layer_types")
    if types and "full_attention" in types:
        every = types.index("full_attention") + 1
    if types and types != layer_types(hf["num_hidden_layers"], every):
        raise ValueError(
            f"config.json: layer_types = {shown(types)} is not supported; supported: every n-th full_attention"
        )
    # Where every layer is global, the window is unused, so it is set to 0.
    return {"window": (hf["sliding_window"] or 0) if every > 1 else 0, "global_every": every}


def layer_types(num_layers: int, global_every: int) -> list[str]:
    """transformers' `layer_types`: each `global_every`-th layer has full attention, the others a
    window.
    """
    return ["sliding_attention" if (i + 1) % global_every else "full_attention" for i in range(num_layers)]


def gemma_from_hf(hf: dict) -> GemmaConfig:
    """The GemmaConfig that a config.json of transformers' GemmaForCausalLM describes."""
    # The first files say "gelu" but mean the tanh approximation, with which the model was trained.
    check_fixed(hf, hidden_act=(ACTIVATION, "gelu"), hidden_activation=(None, ACTIVATION))
    return GemmaConfig(**sizes_from_hf(hf))


def gemma2_from_hf(hf: dict) -> Gemma2Config:
    """The Gemma2Config that a config.json of transformers' Gemma2ForCausalLM describes."""
    check_fixed(hf, hidden_activation=ACTIVATION)
    return Gemma2Config(
        **sizes_from_hf(hf),
        **local_from_hf(hf, global_every=2),
        attn_softcap=hf["attn_logit_softcapping"] or 0.0,
        final_softcap=hf["final_logit_softcapping"] or 0.0,
    )


def gemma3_from_hf(hf: dict) -> Gemma3Config:
    """The Gemma3Config that a config.json of transformers' Gemma3ForCausalLM describes.

    Raises ValueError for soft caps on attention logits and for scaled rotary positions in layers
    with a window.
    """
    check_fixed(hf, hidden_activation=ACTIVATION, attn_logit_softcapping=None)
    rope = hf.get("rope_parameters") or {}
    near, far = rope.get("sliding_attention") or {}, rope.get("full_attention") or {}
    check_fixed(near, rope_type="default", type="default", partial_rotary_factor=(1.0, None))
    # Like transformers: `rope_scaling` overrides single settings of the global layers, and its old
    # key `type` is not read.
    scaling = hf.get("rope_scaling") or {}
    check_fixed(scaling, type=("default", scaling.get("rope_type")))
    said = {name: table.get(name) for table in (far, scaling) for name in ROPE_KEYS if name in table}
    check_fixed(far, partial_rotary_factor=(1.0, None))
    check_fixed(scaling, partial_rotary_factor=(1.0, None))
    # The class's default base is 1e6 for global layers and 1e4 for layers with a window.
    far = said | {"rope_theta": said.get("rope_theta") or hf.get("rope_theta") or 1_000_000.0}
    far = {"rope_parameters": far, "rope_scaling": None, "original_max_position_embeddings": None}
    return Gemma3Config(
        **sizes_from_hf(hf | far),
        **local_from_hf(hf, global_every=hf.get("sliding_window_pattern", 6)),
        local_rope_theta=float(near.get("rope_theta") or hf.get("rope_local_base_freq") or 10_000.0),
        final_softcap=hf.get("final_logit_softcapping") or 0.0,
    )


# Defaults of transformers' Gemma3TextConfig for sizes that the published image-text files leave
# out.
GEMMA3_TEXT = class_defaults.GEMMA3 | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
}


def gemma3_text_from_hf(hf: dict) -> Gemma3Config:
    """The Gemma3Config of the text model inside transformers' Gemma3ForConditionalGeneration."""
    return gemma3_from_hf(GEMMA3_TEXT | hf["text_config"])


def to_hf(cfg: GemmaConfig, *, model_type: str) -> dict:
    """The config.json of a Gemma of the generation `model_type`: "gemma", "gemma2" or
    "gemma3_text".

    Raises ValueError where that generation does not have what the config asks for.
    """
    if (cfg.post_norms, cfg.qk_norm) != NORMS[model_type]:
        raise ValueError(
            f"model: a {model_type} has (post_norms, qk_norm) = {NORMS[model_type]}; "
            f"this one has {cfg.post_norms, cfg.qk_norm}"
        )
    if model_type == "gemma3_text" and cfg.attn_softcap:
        raise ValueError(f"model.attn_softcap = {cfg.attn_softcap}; a gemma3_text has none: 0")
    if model_type == "gemma" and (cfg.window or cfg.query_pre_attn_scalar or cfg.attn_softcap or cfg.final_softcap):
        raise ValueError("model: a gemma has no window, query_pre_attn_scalar or soft caps; use Gemma2Config")
    fixed = {"hidden_act": ACTIVATION, "hidden_activation": ACTIVATION, "attention_bias": False}
    hf = {"model_type": model_type, **llama.sizes_to_hf(cfg), **fixed}
    if model_type == "gemma":
        return hf
    hf |= {
        "query_pre_attn_scalar": cfg.query_pre_attn_scalar or cfg.head_dim,
        # transformers requires a number even where every layer is global.
        "sliding_window": cfg.window or class_defaults.GEMMA2["sliding_window"],
        "layer_types": layer_types(cfg.num_layers, cfg.global_every if cfg.window else 1),
        "attn_logit_softcapping": cfg.attn_softcap or None,
        "final_logit_softcapping": cfg.final_softcap or None,
    }
    if model_type == "gemma2":
        return hf
    return hf | {"rope_local_base_freq": cfg.local_rope_theta, "sliding_window_pattern": cfg.global_every}


def family(architecture: str, config: type[GemmaConfig], from_hf, model_type: str, rows: tuple[Row, ...]) -> Family:
    """The family of one generation of Gemma.

    from_hf: its reader of config.json; rows: its name table.
    """
    write = functools.partial(to_hf, model_type=model_type)
    return Family(architecture, config, from_hf, write, rows, llama.IGNORED, copies=llama.COPIES)


GEMMA = family("GemmaForCausalLM", GemmaConfig, gemma_from_hf, "gemma", llama.ROWS)
GEMMA2 = family("Gemma2ForCausalLM", Gemma2Config, gemma2_from_hf, "gemma2", ROWS)
GEMMA3 = family("Gemma3ForCausalLM", Gemma3Config, gemma3_from_hf, "gemma3_text", ROWS)
# Only the text model of an image-text file is imported. Exported, it is a Gemma3ForCausalLM.
GEMMA3_IMAGE_TEXT = dataclasses.replace(
    GEMMA3,
    architecture="Gemma3ForConditionalGeneration",
    from_hf=gemma3_text_from_hf,
    # Versions of transformers differ in the text model's prefix.
    renamed=((r"^(language_model\.model|model\.language_model)\.", "model."), (r"^language_model\.lm_head", "lm_head")),
    left_out=(r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"),
)
