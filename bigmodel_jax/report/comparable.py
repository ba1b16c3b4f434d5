"""Whether several runs' figures may be held against each other: a loss per token, say, only under one tokenizer."""

from collections.abc import Callable
from typing import Any

from bigmodel_jax.report.history import Run, flatten, unit

# Of a data config, what decides which rows are held out; the rest says how they are prepared.
HELD_OUT = (
    "train",
    "validation",
    "test",
    "evaluate_on",
    "validation_fraction",
    "target",
    "num_classes",
    "source",
    "parts",
)
# What an evaluation does not see, or what leaves its figures comparable.
ASIDE = (
    *("cache_dir", "max_bad_records", "max_shift", "seq_len", "packing", "tokenizer"),
    *("image_size", "eval_crop", "augment", "mix", "normalise", "mean", "spread"),
    *("source.train", "source.train_split", "source.data_dir"),
)


def _fields(run: Run, part: str) -> dict[str, Any]:
    return flatten(run.config.get(part, {}))


def _under(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def _task(run: Run) -> Any:
    return run.config.get("objective", {}).get("type", ""), unit(run)


def _held_out(run: Run) -> Any:
    """A data class of the user's own may hold out rows by any of its fields."""
    own = not str(run.config.get("data", {}).get("type", "bigmodel_jax.")).startswith("bigmodel_jax.")
    fields = _fields(run, "data")
    cut = "source.train" if "validation_fraction" in fields and not fields.get("source.validation") else None
    decides = {k: not _under(k, ASIDE) and (own or _under(k, HELD_OUT)) for k in fields} | {cut: True}
    return sorted((k, str(v)) for k, v in fields.items() if decides[k])


def _prepared(run: Run) -> Any:
    """How much of a text is hidden, how it is cut: what the tokens that are predicted depend on."""
    return sorted((k, str(v)) for k, v in _fields(run, "data").items() if not _under(k, ASIDE))


def _tokenizer(run: Run) -> Any:
    return run.tokenizer or sorted((k, str(v)) for k, v in _fields(run, "data").items() if k.startswith("tokenizer"))


def _objective(run: Run) -> Any:
    return sorted((k, str(v)) for k, v in _fields(run, "objective").items() if k != "logits")


def _training_data(run: Run) -> Any:
    return sorted((k, str(v)) for k, v in _fields(run, "data").items() if k not in ("cache_dir", "source.data_dir"))


def _batch(run: Run) -> Any:
    return run.config.get("train", {}).get("batch_size"), _fields(run, "data").get("seq_len")


def _needs(key: str, per_token: bool) -> dict[str, Callable[[Run], Any]]:
    """{what must be the same in all runs: a function that reads it from a run} for a figure to be compared."""
    tokens = {"preparation of the data": _prepared, "tokenizer": _tokenizer} if per_token else {}
    if key in ("mfu", "data_wait_share", "goodput"):
        return {}
    if key == "step_seconds":
        return {"batch": _batch}
    if key == "tokens_per_second":
        return {"unit": unit} | ({"tokenizer": _tokenizer} if per_token else {})
    if key == "eval/bits_per_byte":
        return {"held-out text": _held_out}
    needs = {"task": _task, "held-out data": _held_out} | tokens
    if key == "train_loss":
        needs["training data"] = _training_data
    return needs | ({"objective": _objective} if key.endswith("loss") else {})


def difference(key: str, runs: list[Run]) -> str:
    """The first thing in which the runs differ that makes this figure of theirs incomparable; "" where it compares."""
    per_token = any(unit(run) == "token" for run in runs)
    for name, read in _needs(key, per_token).items():
        values = [read(run) for run in runs]
        if any(value != values[0] for value in values):
            return name
    return ""
