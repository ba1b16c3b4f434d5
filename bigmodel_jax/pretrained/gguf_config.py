"""Translates a GGUF file's metadata to the keys of config.json.

Every key is used, refused, or known to change nothing. The `gguf` package lists the keys that
llama.cpp reads.
"""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

# Keys that can change what is computed, with the values that change nothing.
NEUTRAL: dict[str, tuple] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "general.type": ("model",),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "split.count": (0, 1),
    "swin_norm": (False,),
    "use_parallel_residual": (False,),
}
# Keys that change no logits: a note on fine-tuning, the tensors' layout, and the pooling.
INERT = ("rope.scaling.finetuned", "tensor_data_layout", "pooling_type")
# Beginnings of keys that describe the file, its tokenizer (read elsewhere) and its quantisation.
INERT_PREFIXES = ("GGUF.", "general.", "tokenizer.", "quantize.", "split.", "imatrix.")
# The largest allowed values. Sizes are int32 on the devices. Depths have a tighter bound, because
# lists with one entry per layer are built before any tensor is read.
MOST = {"block_count": 10_000}
SCALINGS = ("none", "linear", "yarn")


class Metadata:
    """The metadata keys of one architecture. It notes which keys have been read."""

    def __init__(self, fields: dict[str, Any], architecture: str):
        self.fields, self.prefix, self.read = fields, f"{architecture}.", set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key. Where the file gives one value per layer, they must all be equal."""
        self.read.add(name)
        value = self.fields.get(self.prefix + name, default)
        if not isinstance(value, list):
            return value
        if not value or any(x != value[0] for x in value):
            raise ValueError(f"{self.prefix}{name} = {value} differs between layers; supported: one value for all")
        return value[0]

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0.

        Raises ValueError for another value, or for a missing one without a default.
        """
        value = self.get(name, default)
        if value is None:
            raise ValueError(f"{self.prefix}{name} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"{self.prefix}{name} = {value!r}; allowed: numbers above 0")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        value, most = self.number(name, default), MOST.get(name, 2**31 - 1)
        if not isinstance(value, int) or value > most:
            raise ValueError(f"{self.prefix}{name} = {value!r}; allowed: whole numbers above 0 and up to {most}")
        return value

    def check_unread(self) -> None:
        """Raises ValueError for an unread key that llama.cpp would follow.

        Unknown keys are named in the log, once.
        """
        meant, unknown = _known_keys(), []
        for key, value in self.fields.items():
            name = key.removeprefix(self.prefix)
            if name in self.read or name in INERT or value in NEUTRAL.get(name, ()):
                continue
            if name not in NEUTRAL and key.startswith(INERT_PREFIXES):
                continue
            if name in NEUTRAL or name in meant:
                allowed = " or ".join(map(repr, NEUTRAL.get(name, ())))
                raise ValueError(f"{key} = {value!r} is not supported; supported: {allowed or 'files without it'}")
            unknown.append(key)
        if unknown:
            log.warning("not used: %s", ", ".join(sorted(unknown)))


def check_tokenizer(fields: dict[str, Any], path: Path) -> None:
    """Raises a ValueError of one line for tokenizer lists that are missing, of another type or
    inconsistent.
    """
    for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"):
        if not isinstance(fields.get(name, ""), str):
            raise ValueError(f"{path}: {name} = {fields[name]!r} is no text")
    tokens = fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(x, str) for x in tokens):
        raise ValueError(f"{path}: tokenizer.ggml.tokens is missing, or no list of texts")
    kinds = {"token_type": (int,), "scores": (int, float), "merges": (str,)}
    for name, types in kinds.items():
        found = fields.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(found, list) or not all(isinstance(x, types) for x in found):
            raise ValueError(f"{path}: tokenizer.ggml.{name} is no list of {types[-1].__name__}")
        if name != "merges" and found and len(found) != len(tokens):
            raise ValueError(f"{path}: tokenizer.ggml.{name} has {len(found)} entries for {len(tokens)} tokens")
    model = fields.get("tokenizer.ggml.model")
    needed = {"gpt2": ("token_type", "merges"), "llama": ("token_type", "scores")}.get(model, ())
    for name in needed:
        if f"tokenizer.ggml.{name}" not in fields:
            raise ValueError(f"{path}: tokenizer.ggml.{name} is missing, which a tokenizer of kind {model!r} has")
    known = set(tokens)
    for merge in fields.get("tokenizer.ggml.merges", []):
        parts = merge.split(" ")
        if len(parts) != 2 or not known >= {*parts, "".join(parts)}:
            raise ValueError(f"{path}: tokenizer.ggml.merges has {merge!r}, which does not join two tokens to a third")


def _known_keys() -> set[str]:
    """All metadata keys that the gguf package knows, without the architecture's prefix."""
    from gguf.constants import Keys

    groups = [group for group in vars(Keys).values() if isinstance(group, type)]
    names = [name for group in groups for name in vars(group).values() if isinstance(name, str)]
    return {name.removeprefix("{arch}.") for name in names}


def hf_config(fields: dict[str, Any], *, tied: bool, factors: np.ndarray | None = None) -> dict:
    """The config.json that a Hugging Face folder of the same model would have.

    fields: the file's metadata; tied: whether the head is the embedding table; factors: the factor
    by which each rotary frequency is divided, if the file has them.

    Raises ValueError for a key that is missing, of another type, or that asks for something
    unsupported.
    """
    meta = Metadata(fields, fields["general.architecture"])
    heads, width = meta.whole("attention.head_count"), meta.whole("embedding_length")
    head_dim = meta.whole("attention.key_length", width // heads or None)
    hf = {
        # Many files leave this key out, and llama.cpp counts the tokens then.
        "vocab_size": meta.whole("vocab_size", len(fields.get("tokenizer.ggml.tokens", ())) or None),
        "hidden_size": width,
        "num_hidden_layers": meta.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": meta.whole("feed_forward_length"),
        "max_position_embeddings": meta.whole("context_length"),
        "rope_theta": meta.number("rope.freq_base", 10_000.0),
        # The file stores a float32: 9.999999747378752e-06 stands for 1e-05.
        "rms_norm_eps": _shortest(meta.number("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": tied,
    }
    for name in ("attention.value_length", "rope.dimension_count"):
        if meta.whole(name, head_dim) != head_dim:
            raise ValueError(
                f"{meta.prefix}{name} = {meta.get(name)} is not supported; supported: the heads' {head_dim}"
            )
    hf["rope_scaling"] = _scaling(meta, hf, factors)
    # Every key that is understood has been read by now.
    meta.check_unread()
    return hf


def _shortest(value: float) -> float:
    """The shortest decimal number that rounds to this float32."""
    return float(np.format_float_scientific(np.float32(value)))


def _scaling(meta: Metadata, hf: dict, factors: np.ndarray | None) -> dict | None:
    """The `rope_scaling` of config.json, None where there is no scaling.

    llama.cpp's defaults hold: a factor without a kind means linear scaling, and the kind "none"
    ignores the factor.
    """
    kind = meta.get("rope.scaling.type")
    if kind not in (None, *SCALINGS):
        raise ValueError(
            f"{meta.prefix}rope.scaling.type = {kind!r} is not supported; supported: {', '.join(SCALINGS)}"
        )
    # `rope.scale_linear` is the older name of the factor.
    factor = _shortest(meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 1.0)))
    length = meta.whole("rope.scaling.original_context_length", hf["max_position_embeddings"])
    # These keys are read for every kind, since `check_unread` would refuse them otherwise.
    ends = {"beta_fast": meta.number("rope.scaling.yarn_beta_fast", 32.0)}
    ends |= {"beta_slow": meta.number("rope.scaling.yarn_beta_slow", 1.0)}
    plain = kind == "none" or (kind != "yarn" and factor == 1.0)
    if factors is not None and np.any(factors != 1.0):
        if not plain:
            raise ValueError(
                f"{meta.prefix}rope.scaling beside rope_freqs.weight is not supported; supported: one of both"
            )
        return from_factors(factors, hf["head_dim"], hf["rope_theta"])
    if plain:
        return None
    found = {"rope_type": kind or "linear", "factor": factor, "original_max_position_embeddings": length}
    return found | ends if kind == "yarn" else found


def from_factors(factors: np.ndarray, head_dim: int, theta: float) -> dict:
    """The `rope_scaling` of config.json that divides each rotary frequency by its factor.

    Published files hold Llama 3.1's factors: 1 for short wavelengths, one constant for long ones,
    and a ramp between two wavelengths.

    Raises ValueError where the factors have another form.
    """
    wrong = ValueError("rope_freqs.weight holds factors of another form than Llama 3.1's, which alone are supported")
    if factors.shape != (head_dim // 2,) or not np.all(np.isfinite(factors)) or np.any(factors < 1.0):
        raise wrong
    factors = factors.astype(np.float64)
    stretch = _shortest(factors.max())
    if np.all(factors == factors[0]):
        return {"rope_type": "linear", "factor": stretch}
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    # Llama 3.1 multiplies a frequency by (1 - smooth) / stretch + smooth. Here the equation is
    # solved
    smooth = (stretch / factors - 1) / (stretch - 1)  # 1 where a frequency is kept, 0 where it is divided by `stretch`
    length, ratio = _ramp(waves, smooth)
    if not (1 < ratio < math.inf and 0.5 < length < math.inf):
        raise wrong
    # Only the ratios of length to wavelength matter. So the length is rounded to a whole number,
    # and the ends of the ramp are adjusted and rounded to two decimals, as published files have
    # them.
    whole = max(round(length), 1)
    low = _near(whole / length)
    high = _near(low * ratio)
    again = np.clip((whole / waves - low) / (high - low), 0.0, 1.0)
    # The file's factors are float32. 2e-6 allows for several of its roundings.
    if np.abs(((1 - again) / stretch + again) * factors - 1).max() > 2e-6:
        raise wrong
    ends = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": whole}
    return {"rope_type": "llama3", "factor": stretch, **ends}


def _ramp(waves: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """(length, ratio) such that smooth = (length / wave - 1) / (ratio - 1), clipped to [0, 1]."""
    inside = (smooth > 1e-5) & (smooth < 1 - 1e-5)
    if inside.sum() > 1:
        # On the ramp smooth is linear in 1 / wave: the slope is length / (ratio - 1), and the
        # offset is -1 / (ratio - 1).
        slope, offset = np.polyfit(1 / waves[inside], smooth[inside], 1)
        return (slope / -offset, 1 - 1 / offset) if offset < 0 else (0.0, 0.0)
    # One point or none on the ramp does not determine the ratio, so the published ratio of 4 is
    # used.
    if inside.sum() == 1:
        return float(waves[inside][0] * (1 + 3 * smooth[inside][0])), 4.0
    # Any length between 4 * kept.max() and divided.min() fits. The geometric mean of both is used.
    kept, divided = waves[smooth > 0.5], waves[smooth < 0.5]
    return (math.sqrt(4 * kept.max() * divided.min()), 4.0) if kept.size else (0.0, 0.0)


def _near(x: float) -> float:
    """`x` rounded to two decimals if that changes it by less than 1e-4 of itself, else `x`."""
    return round(x, 2) if abs(x - round(x, 2)) < 1e-4 * x else x
