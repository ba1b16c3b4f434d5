"""Cross-validation: a data config with one fold of its training records held out."""

import dataclasses
from typing import Any

from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.data.sources.fold import HeldOutFold
from bigmodel_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Folds:
    """The settings of cross-validation.

    - k: the number of folds.
    - stratify: spread the labels evenly over the folds.
    - together: a field. Records with equal values of it share a fold.
    - seed: decides which records share a fold.
    """

    k: int
    stratify: bool = True
    together: str = ""
    seed: int = 0


def folded(data: DataConfig, folds: Folds, n: int) -> DataConfig:
    """Return `data` with fold `n` held out. Raises ValueError where it has no finite records."""
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
    """Return the sizes of the folds of a config that `folded` made.

    The result is {"records": [records per fold], "labels": {label: [its records per fold]}}. Raises
    ValueError, in terms of the command line's options, where there are more folds than records or a
    field is missing.
    """
    try:
        return data.source.counts(data.root(), data.max_bad_records, data.record_form())
    except ValueError as error:
        # The source's message names its own fields, but the user typed options of cross-validate.
        said = str(error).replace("data.source.together", "--together").replace("data.source.stratify", "--stratify")
        raise ValueError(f"--k {data.source.k}: {said}" if "folds of" in said else said) from None


def has_validation(data: DataConfig) -> bool:
    """Tell whether the source of an unfolded `data` has a validation split of its own."""
    return data.source.has("validation", data.root())
