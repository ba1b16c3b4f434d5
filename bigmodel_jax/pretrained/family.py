"""Describes one published model family, and holds the checks of config.json that families share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from bigmodel_jax.core import params
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.nn.position import RopeScaling, mscale
from bigmodel_jax.pretrained.names import Row, Source


@dataclasses.dataclass(frozen=True)
class Family:
    """What the package needs to read and write the published files of one architecture.

    - architecture: the name in config.json's "architectures".
    - config: our config class. Several architectures may share one.
    - from_hf: makes our config from a parsed config.json; to_hf: makes a config.json from our
      config.
    - rows: the name table, one row for each tensor name.
    - ignored: patterns of names of tensors that hold no parameters, such as masks and tied copies.
    - prefix: what may be missing before every tensor's name in some files.
    - renamed: (pattern, replacement) for names that older or newer files use.
    - unpack: turns the tensors of a file into plain ones, for example by dequantising them.
    - left_out: patterns of tensors of model parts that ours does not have; the log names them.
    - copies: (name, origin) of ignored tensors that the reference model reads. Their values must
      equal the origin's: another tensor by name, or a function of the config.
    - computed: (name, function of the config) of tensors that the reference reads from its files
      and our model computes. An export writes them.
    """

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
    computed: tuple[tuple[str, Callable[[Any], Any]], ...] = ()


class OtherArchitecture(ValueError):
    """The config belongs to another architecture that shares the config class."""


def spec_by_path(cfg: ModelConfig) -> dict[str, params.Param]:
    """The model's parameters by path, as `Param` descriptions: shapes, axes and initialisation, no
    values.
    """
    return params.paths(cfg.make().spec)


def check_fixed(hf: dict, **expected: Any) -> None:
    """Raises ValueError where a config.json asks for something that this family does not have.

    expected: for each key its only supported value, or a tuple of all supported values. A missing
    key passes.
    """
    for name, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if hf.get(name, allowed[0]) not in allowed:
            listed = ", ".join(shown(x) for x in allowed)
            raise ValueError(f"config.json: {name} = {shown(hf[name])} is not supported; supported: {listed}")


def check_head(cfg: ModelConfig, head: str) -> None:
    """Raises ValueError where a config has another head than the architecture that is to be
    written.
    """
    if cfg.head != head:
        raise ValueError(f"model.head = {cfg.head!r} is not published for this architecture; it must be {head!r}")


def shown(value: Any, most: int = 200) -> str:
    """A value for a message, cut off after `most` characters, since a list may have one entry per
    layer.
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."


def check_layer_types(hf: dict, window: int = 0) -> None:
    """Raises ValueError where `layer_types` says that layers differ.

    It is for families in which either all layers have the sliding window or none has.
    """
    kind = "sliding_attention" if window else "full_attention"
    check_fixed(hf, layer_types=(None, [kind] * hf["num_hidden_layers"]))


MSCALES = ("mscale", "mscale_all_dim")
ROPE_KINDS = ("linear", "llama3", "yarn")


def rope_settings(hf: dict) -> dict:
    """The table of rotary settings in config.json, {} where there is none.

    transformers reads `rope_parameters` (its version 5) only where `rope_scaling` (version 4) is
    absent, null or empty.
    """
    parameters, scaling = hf.get("rope_parameters"), hf.get("rope_scaling")
    return scaling or parameters or {}


def rope_from_hf(hf: dict, default_theta: float = 10_000.0) -> tuple[float, RopeScaling]:
    """(theta, scaling) of rotary positions, read from config.json as transformers reads them.

    The settings come from `rope_parameters`, `rope_scaling`, `rope_theta` and the keys of lengths.
    Raises ValueError for a kind of scaling that is not supported, and for partial rotation.
    """
    found = rope_settings(hf)
    check_fixed(hf, partial_rotary_factor=(1.0, None))
    check_fixed(found, partial_rotary_factor=(1.0, None))
    # transformers 5 writes theta into the table, and version 4 beside it.
    theta = float(found.get("rope_theta") or hf.get("rope_theta") or default_theta)
    # `type` is the older name of `rope_type`.
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", "none"):
        return theta, RopeScaling()
    if kind not in ROPE_KINDS:
        raise ValueError(
            f"config.json: rope_type = {kind!r} is not supported; supported: default, {', '.join(ROPE_KINDS)}"
        )
    # transformers prefers the length beside the table of settings to the one inside it.
    length = hf.get("original_max_position_embeddings") or found.get("original_max_position_embeddings")
    length = int(length or hf["max_position_embeddings"])
    factor = found["factor"]
    # transformers computes a missing factor from the two lengths.
    if kind == "yarn" and factor is None:
        factor = hf["max_position_embeddings"] / length
    if kind == "linear":
        return theta, RopeScaling(kind, float(factor), length)
    if kind == "llama3":
        low, high = float(found["low_freq_factor"]), float(found["high_freq_factor"])
        return theta, RopeScaling(kind, float(factor), length, low_freq_factor=low, high_freq_factor=high)
    return theta, _yarn_from_hf(found, float(factor), length)


def _yarn_from_hf(found: dict, factor: float, length: int) -> RopeScaling:
    """The YaRN settings of a table of rotary settings.

    Where `attention_factor` is missing, it follows from `mscale` and `mscale_all_dim` if both are
    there and not 0.
    """
    scaling = RopeScaling(
        "yarn",
        factor,
        length,
        # transformers uses its defaults for null and 0 as well.
        beta_fast=float(found.get("beta_fast") or 32.0),
        beta_slow=float(found.get("beta_slow") or 1.0),
        truncate=bool(found.get("truncate", True)),
    )
    given, scales = found.get("attention_factor"), [found.get(name) for name in MSCALES]
    if given is None and all(scales):
        given = mscale(factor, scales[0]) / mscale(factor, scales[1])
    return scaling if given is None else dataclasses.replace(scaling, attention_factor=float(given))


def rotary_dim_from_hf(hf: dict, head_dim: int, default: float) -> tuple[int, dict]:
    """(number of rotated dimensions per head, the config.json as if every dimension were rotated).

    default: the share of rotated dimensions where the file gives none. The returned config.json can
    be passed to `rope_from_hf`, which refuses partial rotation.
    """
    found = rope_settings(hf)
    share = found.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or default
    whole = {"partial_rotary_factor": 1.0}
    # `rope_settings` prefers `rope_scaling`, so that key is emptied and the merged table is read.
    return int(head_dim * share), hf | whole | {"rope_parameters": found | whole, "rope_scaling": None}


def rotary_dim_to_hf(rotary_dim: int, head_dim: int) -> dict:
    """The `partial_rotary_factor` that makes transformers rotate `rotary_dim` dimensions.

    transformers rounds the product of share and head_dim down, so the share is rounded up where
    needed.
    """
    share = rotary_dim / head_dim
    return {"partial_rotary_factor": share if int(head_dim * share) == rotary_dim else math.nextafter(share, 1.0)}


def rope_to_hf(theta: float, scaling: RopeScaling) -> dict:
    """The keys of config.json for rotary positions, in the form that transformers 4 and 5 both
    read.
    """
    if scaling.kind == "none":
        return {"rope_theta": theta, "rope_scaling": None}
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    # transformers warns about keys that a kind of scaling does not have.
    if scaling.kind != "linear":
        found["original_max_position_embeddings"] = scaling.original_max_seq_len
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        # 0 stands for the factor that transformers computes where the file gives none.
        if scaling.attention_factor:
            found["attention_factor"] = scaling.attention_factor
    return {"rope_theta": theta, "rope_scaling": found}
