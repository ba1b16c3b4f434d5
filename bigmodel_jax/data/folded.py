"""A data config with one fold of its training records held out, for cross-validation: any data of any finite source."""

import dataclasses
from typing import Any

from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.sources.fold import HeldOutFold
from bigmodel_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Folds:
    """How many folds; whether labels are spread evenly over them; the field whose equal values stay together; the seed
    that decides which records share a fold."""

    k: int
    stratify: bool = True
    together: str = ""
    seed: int = 0


def folded(data: DataConfig, folds: Folds, n: int) -> DataConfig:
    """`data` with fold `n` held out; ValueError, one line, where it has no records that could be folded."""
    source, name = getattr(data, "source", None), type(data).__name__
    if not isinstance(source, Source) or data.endless:
        lacks = "end" if isinstance(source, Source) else "source of records"
        raise ValueError(
            f"cross-validate: {name} has no {lacks}, so that none of its records can be held out in turn; launch.py sweep "
            "--seeds measures the spread over seeds instead"
        )
    if isinstance(source, HeldOutFold):
        raise ValueError("data.source is one fold already; cross-validate makes the folds itself of data.source.source")
    if getattr(data, "evaluate_on", "validation") != "validation":
        raise ValueError(
            f"data.evaluate_on = {data.evaluate_on!r} would evaluate every fold on the same records; give --data.evaluate_on "
            "validation"
        )
    label = data.label_column() if folds.stratify else ""
    return dataclasses.replace(data, source=HeldOutFold(source, folds.k, n, label, folds.together, folds.seed))


def counts(data: DataConfig) -> dict[str, Any]:
    """Of data that `folded` made: {"records": how many each fold has, "labels": {label: how many of it each fold has}}.

    ValueError, with the options of the command line, for more folds than records and for a field that they lack.
    """
    try:
        return data.source.counts(data.root(), data.max_bad_records, data.record_form())
    except ValueError as error:
        said = str(error).replace("data.source.together", "--together").replace("data.source.stratify", "--stratify")
        raise ValueError(f"--k {data.source.k}: {said}" if "folds of" in said else said) from None


def has_validation(data: DataConfig) -> bool:
    """Whether the source of `data`, which is not folded, has a validation split of its own."""
    return data.source.has("validation", data.root())
