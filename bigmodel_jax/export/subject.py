"""Opens the subject of an export: a run's model and its weights as dense arrays."""

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
    """What an export reports: the line for the user, and the step of the checkpoint."""

    said: str
    step: int


class Subject(NamedTuple):
    """A model and its weights by path: dense, with adapters merged and without rows of padding.

    step: the step of the checkpoint that holds the weights.
    """

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
    """One checkpoint's model and weights in `dtype`; which, adapter: as in `load_weights`."""
    plain = dataclasses.replace(config, model=portable(unpadded(config.model)), adapters=AdapterConfig())
    model, mesh = without_aids(plain), sharding.make_mesh(config.parallel)
    tree, step = load_weights(config, run_dir, mesh, which, adapter=adapter)
    flat = params.paths(merged(config, tree, mesh))
    weights = {}
    for path, p in params.paths(model.spec).items():
        # The slice cuts off the rows that pad the vocabulary.
        array = dense(flat[path], dtype)[tuple(map(slice, p.shape))]
        # Arrays of integers keep their type.
        weights[path] = array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.inexact) else array
    return Subject(plain.model, model, weights, step)


def without_aids(config: Config) -> Model:
    """The model without the objective's parameters that only training reads, such as a teacher.

    The head that makes the answer is kept.
    """
    model, objective = config.make_model(), config.objective
    aids = objective.parameters(config.model).keys() - {objective.answers_by}
    return model._replace(spec={name: branch for name, branch in model.spec.items() if name not in aids})


def check_answers(config: Config, option: str) -> None:
    """Raises a ValueError of one line where a head of the objective's own makes the run's answer.

    The programs hold the model alone, so they would not give that answer.
    """
    if head := config.objective.answers_by:
        raise ValueError(
            f"{option}: {type(config.objective).__name__} computes its answer by a head of its own ({head}), "
            "which the model's programs do not hold; --format huggingface or orbax writes it"
        )


def portable(config: Any) -> Any:
    """The config with plain attention and default stacks, in its towers as well.

    This form of computing works on every platform and for every length.
    """
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
