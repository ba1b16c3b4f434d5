"""The names and metrics of a run's evaluation sets, and the config that evaluates each of them."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from bigmodel_jax.core.metrics import Metric
from bigmodel_jax.data.base import DataConfig
from bigmodel_jax.metrics import texts
from bigmodel_jax.objectives.base import evaluated

NAME = re.compile(r"[\w.-]{1,40}")  # it becomes a part of metric names and file names


def seen(config: Any) -> list[tuple[str, Any]]:
    """(option, config) of every evaluation set, in order.

    option: the set's option, such as "eval.sets.0". config: the run's config with the set's data,
    objective and batch size.
    """
    found = []
    for i, one in enumerate(config.eval.sets):
        # A set without a cache folder shares the run's.
        data = dataclasses.replace(one.data, cache_dir=one.data.cache_dir or config.data.cache_dir)
        size = one.batch_size or config.eval.batch_size
        further = () if one.data.prompts else one.metrics
        evaluation = dataclasses.replace(config.eval, batch_size=size, metrics=further, sets=(one,))
        parts = {"data": data, "objective": one.objective or config.objective, "eval": evaluation}
        found.append((f"eval.sets.{i}", dataclasses.replace(config, **parts)))
    return found


@contextlib.contextmanager
def named(option: str, name: str) -> Iterator[None]:
    """A context in which a ValueError gets the option and the name of the set that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option} ({name}): {error}") from error


def check(config: Any) -> None:
    """Raises ValueError for a set with an unusable name, or one that the run's model cannot be
    evaluated on."""
    names = [one.name for one in config.eval.sets]
    # If a set had the name of a metric of the run, its results would be mistaken for that metric.
    taken = {m.name for m in (*evaluated(config.objective, config.data, config.eval.metrics), *config.data.levels)}
    for i, one in enumerate(config.eval.sets):
        option = f"eval.sets.{i}.name = {one.name!r}"
        if not NAME.fullmatch(one.name) or names.count(one.name) > 1:
            raise ValueError(f"{option}; each name must differ, and have up to 40 letters, digits, _, . or -")
        if one.name in taken:
            raise ValueError(f"{option} is the name of a metric of the run; give the set another name")
        with named(f"eval.sets.{i}", one.name):
            _check_data(config, one)


def _check_data(config: Any, one: Any) -> None:
    if not isinstance(one.data, DataConfig) or type(one.data) is DataConfig:
        raise ValueError("it has no data; give data = TextData(...), PromptData(...) or another one of its own")
    if one.data.prompts:
        texts.declared("metrics", one.metrics)  # raises for an unknown name
    if one.data.prompts and not one.metrics and not (config.data.prompts and one.objective is None):
        raise ValueError(f"its data are prompts; give metrics of their answers: {', '.join(texts.TEXT_METRICS)}")
    if one.data.prompts and config.make_model().make_cache is None:
        raise ValueError(f"its data are prompts, and a {type(config.model).__name__} generates no text")
    # A set's objective may not need parameters that the run does not train.
    own = config.objective.parameters(config.model)
    if more := [name for name in (one.objective or config.objective).parameters(config.model) if name not in own]:
        raise ValueError(
            f"its {type(one.objective).__name__} keeps {more[0]!r} beside the model, which the run does not"
        )


# ---------------------------------------------------------------------------- what the sets measure


def measured(config: Any, one: Any) -> tuple[Metric, ...]:
    """The metrics that the evaluation of one set computes, named without the set's name."""
    if one.data.prompts and one.metrics:
        return texts.declared("metrics", one.metrics)
    return evaluated(one.objective or config.objective, one.data, one.metrics)


def declared(config: Any) -> tuple[Metric, ...]:
    """The metrics of all sets, named "SET/METRIC", with their places in the report's plots.

    A metric that the run has as well is drawn in the run's plot. A metric that several sets share
    is drawn in the plot of the first of these sets.
    """
    every = [(one.name, metric) for one in config.eval.sets for metric in measured(config, one)]
    places = {m.name: m.name for m in config.objective.metrics if not m.beside and m.name != "loss"}
    found = []
    for name, metric in every:
        shared = sum(other.name == metric.name for _, other in every) > 1
        if metric.name in places:
            change = {"title": "", "beside": places[metric.name], "label": name}
        else:
            title = f"{metric.title or metric.label or metric.name}{' by set' if shared else f', {name}'}"
            change = {"title": title, "beside": "", "label": name if shared else ""}
            places[metric.name] = f"{name}/{metric.name}"
        found.append(dataclasses.replace(metric, name=f"{name}/{metric.name}", headline=False, **change))
    return tuple(found)


def every(config: Any) -> int:
    """Steps between two measurements of `checkpoint.best_metric`; 0 = only after the last step."""
    name = config.checkpoint.best_metric.removeprefix("eval/").partition("/")[0]
    return next((one.every for one in config.eval.sets if one.name == name), 0) or config.eval.every
