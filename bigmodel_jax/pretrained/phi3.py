"""Phi-3's and Phi-4's tensor names and config.json.

The names are Llama's, with two exceptions: one tensor joins queries, keys and values, and another
joins both input matrices of the MLP.
"""

from typing import Any

from bigmodel_jax.models.phi3 import Phi3Config
from bigmodel_jax.nn.position import LongRope, long_rope_factor
from bigmodel_jax.pretrained import llama
from bigmodel_jax.pretrained.config_json import read_as
from bigmodel_jax.pretrained.config_keys import COUNT
from bigmodel_jax.pretrained.family import Family, check_fixed, rope_settings, rotary_dim_from_hf, rotary_dim_to_hf
from bigmodel_jax.pretrained.glm import GATE_UP, NO_PADDING
from bigmodel_jax.pretrained.llama import check_plain, sizes_from_hf, sizes_to_hf
from bigmodel_jax.pretrained.names import Row, linear

QKV = Row(tuple(f"layers/attn/{name}" for name in "qkv"), "model.layers.{i}.self_attn.qkv_proj.weight", linear())
JOINED = (QKV, GATE_UP)
ROWS = (*(row for row in llama.ROWS if not any(row.ours in joined.paths for joined in JOINED)), *JOINED)
KINDS = ("longrope", "su", "yarn")  # names of LongRoPE; transformers reads the older two as the first


def from_hf(hf: dict) -> Phi3Config:
    """The Phi3Config that a config.json of transformers' Phi3ForCausalLM describes.

    Raises ValueError for rotary settings other than LongRoPE's, and for heads whose dimensions do
    not add up to the width.
    """
    head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    check_fixed(hf, hidden_act="silu", head_dim=(head_dim, None))
    rotary_dim, whole = rotary_dim_from_hf(hf, head_dim, default=1.0)
    long_rope, found = long_rope_from_hf(hf), whole["rope_parameters"]
    if long_rope.short:
        # `sizes_from_hf` refuses LongRoPE as a kind of scaling, so its settings are taken out.
        whole["rope_parameters"] = {
            name: found[name] for name in ("rope_theta", "partial_rotary_factor") if name in found
        }
    window = hf["sliding_window"] or 0
    return Phi3Config(**sizes_from_hf(whole), window=window, rotary_dim=rotary_dim, long_rope=long_rope)


def long_rope_from_hf(hf: dict) -> LongRope:
    """The LongRoPE settings of a config.json, without divisors where it has none.

    transformers reads the length of pretraining beside the table of settings, never inside it.
    """
    found, length = rope_settings(hf), read_as(hf, "original_max_position_embeddings", COUNT)
    # Reading the key makes `check_unread` accept it. transformers does not use it here.
    found.get("original_max_position_embeddings")
    check_fixed(found, **{name: ("default", *KINDS) for name in ("type", "rope_type")})
    if found.get("rope_type", found.get("type", "default")) not in KINDS:
        return LongRope()
    # `long_rope_factor` divides by the logarithm of the length, which is 0 for a length of 1.
    if length < 2:
        raise ValueError(
            f"config.json: original_max_position_embeddings = {length}; beside longrope it must be 2 or more"
        )
    given, stretch = found.get("attention_factor"), found.get("factor")
    if given is None:
        longest = hf["max_position_embeddings"] if stretch is None else length * stretch
        given = long_rope_factor(longest, length)
    sets = (tuple(map(float, found[name])) for name in ("short_factor", "long_factor"))
    return LongRope(*sets, length, float(given))


def long_rope_to_hf(cfg: Phi3Config) -> dict[str, Any]:
    """The keys of config.json for LongRoPE; the inverse of `long_rope_from_hf`.

    transformers 4 allows three keys in the table. The factor is a fourth key, so it is written only
    where it does not follow from the lengths.
    """
    scale = cfg.long_rope
    if not scale.short:
        return {"original_max_position_embeddings": cfg.max_seq_len}
    found = {"type": KINDS[0], "short_factor": list(scale.short), "long_factor": list(scale.long)}
    if scale.attention_factor != long_rope_factor(cfg.max_seq_len, scale.original_max_seq_len):
        found["attention_factor"] = scale.attention_factor
    return {"original_max_position_embeddings": scale.original_max_seq_len, "rope_scaling": found}


def to_hf(cfg: Phi3Config) -> dict:
    """The config.json of transformers' Phi3ForCausalLM for this config.

    Raises ValueError for biases, norms of queries and keys, another scaling of rotary positions
    than LongRoPE, and heads whose dimensions do not add up to the width.
    """
    check_plain(cfg, "phi3", "window")
    if cfg.head_dim != cfg.embed_dim // cfg.num_heads:
        raise ValueError(
            f"model.head_dim = {cfg.head_dim}: in a phi3 it is embed_dim / num_heads = {cfg.embed_dim // cfg.num_heads}"
        )
    if cfg.rope_scaling.kind != "none":
        raise ValueError(f"model.rope_scaling.kind = {cfg.rope_scaling.kind!r}: a phi3 has none; use model.long_rope")
    # Phi-3's class in transformers has no head_dim: it divides the width by the number of heads.
    sizes = {name: value for name, value in sizes_to_hf(cfg).items() if name != "head_dim"}
    return {
        "model_type": "phi3",
        **sizes,
        **rotary_dim_to_hf(cfg.rotary_dim, cfg.head_dim),
        **long_rope_to_hf(cfg),
        "sliding_window": cfg.window or None,
        **NO_PADDING,
    }


PHI3 = Family("Phi3ForCausalLM", Phi3Config, from_hf, to_hf, ROWS, llama.IGNORED, copies=llama.COPIES)
