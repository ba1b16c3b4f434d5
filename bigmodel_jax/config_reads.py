"""Checks, before data is opened, that the data gives the arrays that objective and model read.

All three declare the names of these arrays.
"""

from collections.abc import Iterable

from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data import DATA, DataConfig
from bigmodel_jax.data.fields import WEIGHTS, Row, in_training
from bigmodel_jax.models import MODELS, ModelConfig
from bigmodel_jax.models.adapters import AdapterConfig
from bigmodel_jax.objectives import OBJECTIVES, Objective

TAKERS = "; allowed: " + ", ".join(cls.__name__ for cls in OBJECTIVES.values() if cls.takes)


def check(model: ModelConfig, objective: Objective, data: DataConfig, held: Iterable[str] = ()) -> None:
    """Raises ValueError if the data lacks an array that objective or model reads.

    A part that declares nothing is not checked. held: names of the arrays in a row of opened data
    whose class declares none.
    """
    # Objective and model are checked against the arrays of training batches.
    declared, name = in_training(data.row()), type(data).__name__
    given, task = tuple(declared or held), type(objective)
    # A loss weights its rows, and evaluation gives padding rows weight 0.
    if declared and "weights" not in declared:
        raise ValueError(f"data: {name}'s rows declare no 'weights' ({', '.join(given)}); {WEIGHTS}")
    for array in (array for array, field in declared.items() if field.training and array not in task.takes):
        raise ValueError(f"data: {name}'s training batches hold {array!r}, which {task.__name__} does not take{TAKERS}")
    readers = readers_of(model, task)
    lacking = [name for name in readers if name not in given]
    # Data that declares nothing is checked again once it is open, with `held`.
    if not given:
        return
    if not lacking and declared and task.texts not in (0, texts(declared)):
        raise ValueError(
            f"{task.__name__} reads rows of {task.texts} text{'s' * (task.texts > 1)}, and {name}'s have {texts(declared)}"
            f"{fitting(model, task, declared)}"
        )
    if not lacking:
        return
    who = dict.fromkeys(readers[name] for name in lacking)
    reads = " and ".join(f"{one} reads {', '.join(repr(n) for n in lacking if readers[n] == one)}" for one in who)
    near = nearest(lacking[0], given, cutoff=0.75)
    raise ValueError(
        f"{reads}, which {name} does not give ({', '.join(given)}){near}{fitting(model, task, declared or given)}"
    )


def readers_of(model: ModelConfig, kind: type[Objective]) -> dict[str, str]:
    """{array: class that reads it} for the arrays of a batch.

    It is empty if the objective declares none.
    """
    if not kind.reads:
        return {}
    # The objective computes these inputs itself, such as the timestep of a diffusion model.
    inputs = [name for name in model.inputs() if name not in kind.makes]
    return dict.fromkeys(kind.reads, kind.__name__) | dict.fromkeys(inputs, type(model).__name__)


def texts(row: Row) -> int:
    """The number of texts in a row: the first dimension of `tokens` if it has two, else 1."""
    shape = row["tokens"].shape if "tokens" in row else None
    return shape[0] if shape and len(shape) > 1 else 1


def fitting(model: ModelConfig, objective: type[Objective], row: Row | tuple[str, ...]) -> str:
    """The end of an error message: objectives, data and models of this package that would fit.

    Each of the three lists has three names at most. row: what the data declares, or the names of
    the arrays that it holds.
    """
    given, held = set(row), texts(row) if isinstance(row, dict) else 1
    # An objective that reads only weights does not tell which data it is meant for.
    tasks = [
        cls
        for cls in OBJECTIVES.values()
        if set(cls.reads) > {"weights"} and readers_of(model, cls).keys() <= given and cls.texts in (0, held)
    ]
    rows = {cls: in_training(cls().row()) for cls in DATA}
    sets = [
        cls
        for cls, row in rows.items()
        if readers_of(model, objective).keys() <= row.keys() and objective.texts in (0, texts(row))
    ]
    models = [
        cls
        for cls in MODELS.values()
        if readers_of(cls.tiny(), objective).keys() <= given and objective.texts in (0, held)
    ]
    parts = {
        "objective for this model and data": tasks,
        "data for this model and objective": sets,
        "model for this objective and data": models,
    }
    return "".join(f"; {part}: {', '.join(c.__name__ for c in found[:3])}" for part, found in parts.items() if found)


def check_adapters_off(objective: Objective, adapters: AdapterConfig) -> None:
    """Raises ValueError if the reference is the model without its adapters, and the run has no
    adapters."""
    if objective.compares_without_adapters and type(adapters) is AdapterConfig:
        raise ValueError(
            "objective.reference = 'adapters_off': the run has no adapters; give adapters, or another reference"
        )


def check_whole_batch(objective: Objective, microbatches: int, parallel: ParallelConfig) -> None:
    """Raises ValueError if a setting cuts the batch, and the loss is defined only over a whole
    batch."""
    cuts = {
        "train.microbatches": (microbatches, 1),
        "parallel.slices": (parallel.slices, 1),
        "parallel.deterministic": (parallel.deterministic, False),
        "parallel.strategy": (parallel.strategy, "jit"),
    }
    for name, (value, needed) in cuts.items() if objective.whole_batch else ():
        if value != needed:
            raise ValueError(
                f"{name} = {value!r} cuts a batch into pieces, and the loss of {type(objective).__name__} needs the whole "
                f"batch; allowed: {needed!r}"
            )
