"""What an export is made of: a run's weights as dense arrays, and the model that they belong to."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from bigmodel_jax.config import Config
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.precision import Float
from bigmodel_jax.core.storage import dense
from bigmodel_jax.models import Model, ModelConfig
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.models.base import unpadded
from bigmodel_jax.models.compute import Compute, StackCompute
from bigmodel_jax.training.saved import load_weights, merged


class Written(NamedTuple):
    """What a writer says of its work: the line that the user reads, and the step of the checkpoint."""

    said: str
    step: int


class Subject(NamedTuple):
    """weights: by path, dense, with adapters merged and without rows of padding; step: of the checkpoint they are from."""

    config: ModelConfig
    model: Model
    weights: dict[str, Any]
    step: int

    @property
    def kind(self) -> str:
        return type(self.config).__name__


def open_subject(
    config: Config, run_dir: Path, *, which: str = "", adapter: str = "", dtype: Float = "float32"
) -> Subject:
    """The weights of one checkpoint in `dtype`; which, adapter: as `load_weights` has them."""
    plain = dataclasses.replace(config, model=portable(unpadded(config.model)), adapters=AdapterConfig())
    model, mesh = plain.make_model(), sharding.make_mesh(config.parallel)
    tree, step = load_weights(config, run_dir, mesh, which, adapter=adapter)
    flat = params.paths(merged(config, tree, mesh))
    weights = {}
    for path, p in params.paths(model.spec).items():
        array = dense(flat[path], dtype)[tuple(map(slice, p.shape))]
        weights[path] = array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.inexact) else array
    return Subject(plain.model, model, weights, step)


def check_answers(config: Config, option: str) -> None:
    """ValueError, one line, where the run's answer is no output of its model: a program of it would give another one."""
    kept = config.objective.parameters(config.model)
    heads = [path for path, p in params.paths(kept).items() if p.kind == "trained"]
    if heads:
        raise ValueError(
            f"{option}: {type(config.objective).__name__} computes its answer by a head of its own ({', '.join(heads)}), "
            "which the model's programs do not hold; --format huggingface or orbax writes it"
        )


def portable(config: Any) -> Any:
    """`config` with its layers computed in the one form that every platform and every length has, its towers' as well."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Compute):
            changes[field.name] = Compute(attention="plain")
        elif isinstance(value, StackCompute):
            changes[field.name] = StackCompute()
        elif dataclasses.is_dataclass(value):
            changes[field.name] = portable(value)
    return dataclasses.replace(config, **changes)
