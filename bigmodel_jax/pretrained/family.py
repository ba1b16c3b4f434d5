"""What the package knows of a published model family: its config in Hugging Face's words, and its name table."""

import dataclasses
from collections.abc import Callable
from typing import Any

from bigmodel_jax.core import params
from bigmodel_jax.models import ModelConfig
from bigmodel_jax.nn.position import RopeScaling
from bigmodel_jax.pretrained.names import Row, Source


@dataclasses.dataclass(frozen=True)
class Family:
    """architecture: the name in config.json's "architectures"; prefix: what may stand before every tensor's name;
    ignored: patterns of tensors that hold no parameters (masks, tied copies); left_out: of those that belong to a part
    of their model which ours does not have, named in the log; renamed: (pattern, replacement) of names that older files
    use; unpack: a file's tensors -> those tensors, packed ones among them as plain ones."""

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


def spec_by_path(cfg: ModelConfig) -> dict[str, params.Param]:
    return params.paths(cfg.make().spec)


def check_fixed(hf: dict, **expected: Any) -> None:
    """Raises ValueError where a config.json asks for something this family does not have."""
    for name, value in expected.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if hf.get(name, allowed[0]) not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ValueError(f"config.json: {name} = {hf[name]!r} is not supported; supported: {listed}")


def rope_from_hf(hf: dict, default_theta: float = 10_000.0) -> tuple[float, RopeScaling]:
    """(theta, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    found = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = float(found.get("rope_theta") or hf.get("rope_theta") or default_theta)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", "none"):
        return theta, RopeScaling()
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(
            f"config.json: rope_type = {kind!r} is not supported; supported: default, linear, llama3, yarn"
        )
    length = found.get("original_max_position_embeddings") or hf.get("original_max_position_embeddings")
    names = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate")
    fields = {name: found[name] for name in names if found.get(name) is not None}
    return theta, RopeScaling(
        kind=kind,
        factor=float(found["factor"]),
        original_max_seq_len=int(length or hf["max_position_embeddings"]),
        attention_factor=float(found.get("attention_factor") or 0.0),
        **fields,
    )


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
