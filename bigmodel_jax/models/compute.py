"""How a model's layers are computed, apart from what they compute: the config part `compute`.

Every config with stacks of layers has this part.
"""

import dataclasses
from typing import Any

from bigmodel_jax.core import ranges
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.attention.attention import Implementation

# Fields that older configs had in the model itself -> where they are now.
MOVED = {name: f"compute.{name}" for name in ("remat", "unroll", "attention")}


@dataclasses.dataclass(frozen=True)
class StackCompute:
    """How a model's layers are computed if its attention has only one implementation."""

    remat: stack.Remat = "none"  # which activations the backward pass recomputes or fetches from host memory
    unroll: bool = False  # one copy of the layer per layer in the program: faster on CPU, slower to compile when deep


@dataclasses.dataclass(frozen=True)
class Compute(StackCompute):
    """How the layers of a model and their attention are computed."""

    attention: Implementation = "auto"  # which implementation of attention is used


def reset(config: Any) -> Any:
    """`config` with the default `compute` everywhere, towers included.

    The remaining fields identify the model.
    """
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, StackCompute):
            changes[field.name] = field.default
        elif dataclasses.is_dataclass(value):
            changes[field.name] = reset(value)
    return dataclasses.replace(config, **changes)


def of(config: Any) -> StackCompute | None:
    """The `compute` of a model's config; None if it has none of its own."""
    found = getattr(config, "compute", None)
    return found if isinstance(found, StackCompute) else None


def remat(config: Any) -> str:
    """The remat policy that a model's config asks for; "" if the model has no such choice."""
    found = of(config)
    return found.remat if found else ""


def check(config: Any) -> None:
    """Raises ValueError if the config chooses an attention, but the model has only one
    implementation."""
    attention = getattr(of(config), "attention", "auto")
    if attention != "auto" and ranges.hints(type(config)).get("compute") is StackCompute:
        raise ValueError(
            f"model.compute.attention = {attention!r}; the attention of {type(config).__name__} has one implementation: "
            "it must be 'auto'"
        )


def changed(config: Any, **fields: Any) -> Any:
    """`config` with other values in the fields of its `compute`."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, **fields))
