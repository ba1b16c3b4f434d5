"""Decide whether a figure may be compared between runs.

A loss per token, for example, compares only under the same tokenizer.
"""

from collections.abc import Callable
from typing import Any

from bigmodel_jax.report.history import Run, flatten, unit


def _fields(run: Run, part: str) -> dict[str, Any]:
    return flatten(run.config.get(part, {}))


def _data(run: Run, *kinds: str) -> Any:
    """The run's data fields of these kinds, with their values.

    The fields of kind "" decide which rows are held out. A nested field has the kind of its
    parent unless it has one of its own.
    """
    # Values become text because lists and numbers have no common order to sort by.
    found = ((name, str(value), _kind(name, run.compared)) for name, value in _fields(run, "data").items())
    return sorted((name, value) for name, value, kind in found if kind in kinds)


def _kind(name: str, known: dict[str, str]) -> str:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return known.get(name, "")


def _task(run: Run) -> Any:
    return run.config.get("objective", {}).get("type", ""), unit(run)


def _held_out(run: Run) -> Any:
    return _data(run, "")


def _prepared(run: Run) -> Any:
    """Fields on which the predicted tokens depend, such as masking and cropping."""
    return _data(run, "", "prepares")


def _tokenizer(run: Run) -> Any:
    # If a run has saved no tokenizer, the fields that chose its tokenizer are compared instead.
    return run.tokenizer or _data(run, "tokenizer")


def _objective(run: Run) -> Any:
    # "logits" chooses how the loss is computed and leaves its value the same.
    return sorted((k, str(v)) for k, v in _fields(run, "objective").items() if k != "logits")


def _training_data(run: Run) -> Any:
    return _data(run, "", "training", "shape", "tokenizer", "prepares")


def _batch(run: Run) -> Any:
    return run.config.get("train", {}).get("batch_size"), _data(run, "shape")


def _needs(key: str, per_token: bool) -> dict[str, Callable[[Run], Any]]:
    """{property: function that reads it from a run}: the properties that must be equal in all runs
    before the figure may be compared."""
    tokens = {"preparation of the data": _prepared, "tokenizer": _tokenizer} if per_token else {}
    # Shares of time compare between any runs.
    if key in ("mfu", "data_wait_share", "goodput"):
        return {}
    if key == "step_seconds":
        return {"batch": _batch}
    if key == "tokens_per_second":
        return {"unit": unit} | ({"tokenizer": _tokenizer} if per_token else {})
    # Bits per byte do not depend on the tokenizer.
    if key == "eval/bits_per_byte":
        return {"held-out text": _held_out}
    needs = {"task": _task, "held-out data": _held_out} | tokens
    if key == "train_loss":
        needs["training data"] = _training_data
    return needs | ({"objective": _objective} if key.endswith("loss") else {})


def difference(key: str, runs: list[Run]) -> str:
    """The first property that makes this figure incomparable between the runs; "" if none does."""
    per_token = any(unit(run) == "token" for run in runs)
    for name, read in _needs(key, per_token).items():
        values = [read(run) for run in runs]
        if any(value != values[0] for value in values):
            return name
    return ""
