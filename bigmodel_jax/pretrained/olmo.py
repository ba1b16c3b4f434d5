"""The tensor names and config.json of OLMo 2 and OLMo 3."""

from bigmodel_jax.models.olmo import Olmo2Config, Olmo3Config
from bigmodel_jax.pretrained import llama
from bigmodel_jax.pretrained.config_keys import ROPE_KEYS
from bigmodel_jax.pretrained.family import Family, check_fixed, check_layer_types, shown
from bigmodel_jax.pretrained.gemma import layer_types
from bigmodel_jax.pretrained.llama import check_plain, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.names import VECTOR, Row

# Llama's rows that differ here: `post_attention_layernorm` is the norm after attention, and the
# norms of queries and keys run over all heads at once.
OTHERS = ("layers/attn_norm/scale", "layers/mlp_norm/scale", "layers/attn/q_norm/scale", "layers/attn/k_norm/scale")
ROWS = (
    *(row for row in llama.ROWS if row.ours not in OTHERS),
    Row("layers/attn/q_norm/scale", "model.layers.{i}.self_attn.q_norm.weight", VECTOR),
    Row("layers/attn/k_norm/scale", "model.layers.{i}.self_attn.k_norm.weight", VECTOR),
    Row("layers/attn_post_norm/scale", "model.layers.{i}.post_attention_layernorm.weight"),
    Row("layers/mlp_post_norm/scale", "model.layers.{i}.post_feedforward_layernorm.weight"),
)
THETA = 500_000.0  # the rotary base of layers with a window, where a file does not give one


def from_hf(hf: dict) -> Olmo2Config:
    """The Olmo2Config that a config.json of transformers' Olmo2ForCausalLM describes."""
    check_fixed(hf, hidden_act="silu", attention_bias=False)
    check_layer_types(hf)
    return Olmo2Config(**sizes_from_hf(hf))


def to_hf(cfg: Olmo2Config) -> dict:
    """The config.json of transformers' Olmo2ForCausalLM for this config."""
    return {"model_type": "olmo2", **_to_hf(cfg, "olmo2", "qk_norm")}


def _to_hf(cfg: Olmo2Config, model_type: str, *allowed: str) -> dict:
    """The keys that both generations share.

    Raises ValueError for a config that has no such file.
    """
    check_plain(cfg, model_type, *allowed)
    if not cfg.qk_norm:
        raise ValueError("model.qk_norm = False; it must be True, as the files hold the norms")
    return {**sizes_to_hf(cfg), "attention_bias": False}


def olmo3_from_hf(hf: dict) -> Olmo3Config:
    """The Olmo3Config that a config.json of transformers' Olmo3ForCausalLM describes.

    Raises ValueError where layers with and without a window have different rotary bases, and for
    partial rotation. Like transformers 5.23, a `rope_theta` beside the tables is the base of the
    layers without a window alone.
    """
    check_fixed(hf, hidden_act="silu", attention_bias=False)
    rope = hf.get("rope_parameters") or {}
    check_fixed(rope, rope_type=None, type=None, rope_theta=None)  # one table per kind of layer
    near, far = rope.get("sliding_attention") or {}, rope.get("full_attention") or {}
    # Like transformers: `rope_scaling` overrides single settings of the layers without a window.
    scaling = hf.get("rope_scaling") or {}
    for table in (near, far, scaling):
        check_fixed(table, partial_rotary_factor=(1.0, None))
    check_fixed(near, rope_type="default", type="default")
    said = {name: table.get(name) for table in (far, scaling) for name in ROPE_KEYS if name in table}
    far = said | {"rope_theta": said.get("rope_theta") or hf.get("rope_theta") or THETA}
    sizes, local = sizes_from_hf(hf | {"rope_parameters": far, "rope_scaling": None}), local_from_hf(hf)
    sizes["rope_theta"] = _theta(sizes["rope_theta"], float(near.get("rope_theta") or THETA), sizes, local)
    return Olmo3Config(**sizes, **local)


def _theta(far: float, near: float, sizes: dict, local: dict) -> float:
    """The rotary base of all layers, given the bases of layers without and with a window."""
    if local["global_every"] == 1:  # no layer has a window
        return far
    if local["global_every"] > sizes["num_layers"]:  # all have
        return near
    if far != near:
        raise ValueError(
            f"config.json: rope_theta = {far} of full_attention and {near} of sliding_attention are not supported; "
            f"supported: one for both (without rope_parameters.sliding_attention.rope_theta the latter is {THETA})"
        )
    return far


def local_from_hf(hf: dict) -> dict:
    """The fields `window` and `global_every`, from `layer_types` where the file has it.

    Raises ValueError unless every n-th layer is global.
    """
    depth, types, every = hf["num_hidden_layers"], hf.get("layer_types"), 4
    if types:
        # Where no layer is global, the period becomes depth + 1.
        every = (*types, "full_attention").index("full_attention") + 1
    if types and types != layer_types(depth, every):
        raise ValueError(
            f"config.json: layer_types = {shown(types)} is not supported; supported: every n-th full_attention"
        )
    return {"window": hf["sliding_window"], "global_every": every}


def olmo3_to_hf(cfg: Olmo3Config) -> dict:
    """The config.json of transformers' Olmo3ForCausalLM for this config.

    Raises ValueError for a `global_every` that no file can express.
    """
    hf = _to_hf(cfg, "olmo3", "qk_norm", "window")
    if cfg.global_every > (none := cfg.num_layers + 1):
        raise ValueError(
            f"model.global_every = {cfg.global_every}; it must be at most {none} with {cfg.num_layers} layers"
        )
    theta = {"rope_theta": cfg.rope_theta}
    far = {"rope_type": "default"} | theta | (hf["rope_scaling"] or {})
    return {
        "model_type": "olmo3",
        **hf,
        "rope_parameters": {"full_attention": far, "sliding_attention": {"rope_type": "default"} | theta},
        "sliding_window": cfg.window,
        "layer_types": layer_types(cfg.num_layers, cfg.global_every),
    }


OLMO2 = Family("Olmo2ForCausalLM", Olmo2Config, from_hf, to_hf, ROWS, llama.IGNORED, copies=llama.COPIES)
OLMO3 = Family("Olmo3ForCausalLM", Olmo3Config, olmo3_from_hf, olmo3_to_hf, ROWS, llama.IGNORED, copies=llama.COPIES)
