"""How a model is computed, apart from what it computes: `compute`, one part of every config that has stacks of layers."""

import dataclasses
from typing import Any

from bigmodel_jax.core import ranges
from bigmodel_jax.nn import stack
from bigmodel_jax.nn.attention.attention import Implementation

# These fields stood in the models' own configs once.
MOVED = {name: f"compute.{name}" for name in ("remat", "unroll", "attention")}


@dataclasses.dataclass(frozen=True)
class StackCompute:
    """How the layers of a model are computed whose attention has one form alone."""

    remat: stack.Remat = "none"  # what the backward pass computes again, or waits for in the host's memory
    unroll: bool = False  # one copy of the layer per layer in the program: faster on CPU, slower to compile when deep


@dataclasses.dataclass(frozen=True)
class Compute(StackCompute):
    """How the layers of a model and their attention are computed."""

    attention: Implementation = "auto"


def reset(config: Any) -> Any:
    """`config` with every `compute` in it, towers' included, as declared: what is left says which model it is."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, StackCompute):
            changes[field.name] = field.default
        elif dataclasses.is_dataclass(value):
            changes[field.name] = reset(value)
    return dataclasses.replace(config, **changes)


def of(config: Any) -> StackCompute | None:
    """The `compute` of a model's config; None where it has none of its own."""
    found = getattr(config, "compute", None)
    return found if isinstance(found, StackCompute) else None


def remat(config: Any) -> str:
    """What a model's config asks to be computed again; "" where it has no such choice."""
    found = of(config)
    return found.remat if found else ""


def check(config: Any) -> None:
    """ValueError for a kind of attention where the model's has one form alone, though its `compute` may hold one."""
    attention = getattr(of(config), "attention", "auto")
    if attention != "auto" and ranges.hints(type(config)).get("compute") is StackCompute:
        raise ValueError(
            f"model.compute.attention = {attention!r}; the attention of {type(config).__name__} has one form alone: "
            "it must be 'auto'"
        )


def changed(config: Any, **fields: Any) -> Any:
    """`config` with other fields in its `compute`."""
    return dataclasses.replace(config, compute=dataclasses.replace(config.compute, **fields))
