"""What the package knows of a published model family: its config in Hugging Face's words, and its name table."""

import dataclasses
from collections.abc import Callable
from typing import Any

from bigmodel_jax.core import params
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.nn.position import RopeScaling, mscale
from bigmodel_jax.pretrained.names import Row, Source


@dataclasses.dataclass(frozen=True)
class Family:
    """architecture: the name in config.json's "architectures"; prefix: what may stand before every tensor's name;
    ignored: patterns of tensors that hold no parameters (masks, tied copies); left_out: of those that belong to a part
    of their model which ours does not have, named in the log; renamed: (pattern, replacement) of names that older files
    use; unpack: a file's tensors -> those tensors, packed ones among them as plain ones;
    copies: (name, what it must equal: another tensor, or what a config computes) of ignored tensors that the reference
    reads."""

    architecture: str
    config: type[ModelConfig]
    from_hf: Callable[[dict], ModelConfig]
    to_hf: Callable[[Any], dict]
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    unpack: Callable[[Source], Source] | None = None
    left_out: tuple[str, ...] = ()
    copies: tuple[tuple[str, str | Callable[[Any], Any]], ...] = ()


class OtherArchitecture(ValueError):
    """A config is that of another architecture of the same config class."""


def spec_by_path(cfg: ModelConfig) -> dict[str, params.Param]:
    return params.paths(cfg.make().spec)


def check_fixed(hf: dict, **expected: Any) -> None:
    """Raises ValueError where a config.json asks for something this family does not have."""
    for name, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if hf.get(name, allowed[0]) not in allowed:
            listed = ", ".join(shown(x) for x in allowed)
            raise ValueError(f"config.json: {name} = {shown(hf[name])} is not supported; supported: {listed}")


def shown(value: Any, most: int = 200) -> str:
    """A value for a message: of a list with an entry a layer, its beginning."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def check_layer_types(hf: dict, window: int = 0) -> None:
    """Raises ValueError where `layer_types` says that layers differ, in a family where all or none have the window."""
    kind = "sliding_attention" if window else "full_attention"
    check_fixed(hf, layer_types=(None, [kind] * hf["num_hidden_layers"]))


MSCALES = ("mscale", "mscale_all_dim")
ROPE_KINDS = ("linear", "llama3", "yarn")


def rope_settings(hf: dict) -> dict:
    """What config.json says of rotary positions: transformers reads `rope_parameters` (5) only where `rope_scaling` (4)
    is absent, null or empty."""
    parameters, scaling = hf.get("rope_parameters"), hf.get("rope_scaling")
    return scaling or parameters or {}


def rope_from_hf(hf: dict, default_theta: float = 10_000.0) -> tuple[float, RopeScaling]:
    """(theta, scaling) as transformers takes them from `rope_parameters`, `rope_scaling`, `rope_theta` and lengths."""
    found = rope_settings(hf)
    check_fixed(hf, partial_rotary_factor=(1.0, None))
    check_fixed(found, partial_rotary_factor=(1.0, None))
    theta = float(found.get("rope_theta") or hf.get("rope_theta") or default_theta)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", "none"):
        return theta, RopeScaling()
    if kind not in ROPE_KINDS:
        raise ValueError(
            f"config.json: rope_type = {kind!r} is not supported; supported: default, {', '.join(ROPE_KINDS)}"
        )
    # The length beside the settings goes before the one inside them.
    length = hf.get("original_max_position_embeddings") or found.get("original_max_position_embeddings")
    length = int(length or hf["max_position_embeddings"])
    factor = found["factor"]
    if kind == "yarn" and factor is None:
        factor = hf["max_position_embeddings"] / length
    if kind == "linear":
        return theta, RopeScaling(kind, float(factor), length)
    if kind == "llama3":
        low, high = float(found["low_freq_factor"]), float(found["high_freq_factor"])
        return theta, RopeScaling(kind, float(factor), length, low_freq_factor=low, high_freq_factor=high)
    return theta, _yarn_from_hf(found, float(factor), length)


def _yarn_from_hf(found: dict, factor: float, length: int) -> RopeScaling:
    """`mscale` and `mscale_all_dim` say attention_factor in another form, unless it is given or one of them is 0."""
    scaling = RopeScaling(
        "yarn",
        factor,
        length,
        beta_fast=float(found.get("beta_fast") or 32.0),
        beta_slow=float(found.get("beta_slow") or 1.0),
        truncate=bool(found.get("truncate", True)),
    )
    given, scales = found.get("attention_factor"), [found.get(name) for name in MSCALES]
    if given is None and all(scales):
        given = mscale(factor, scales[0]) / mscale(factor, scales[1])
    return scaling if given is None else dataclasses.replace(scaling, attention_factor=float(given))


def rope_to_hf(theta: float, scaling: RopeScaling) -> dict:
    """config.json's keys, in the form that transformers 4 and 5 both read."""
    if scaling.kind == "none":
        return {"rope_theta": theta, "rope_scaling": None}
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        found["original_max_position_embeddings"] = scaling.original_max_seq_len
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor:
            found["attention_factor"] = scaling.attention_factor
    return {"rope_theta": theta, "rope_scaling": found}
