"""Makes an ensemble of runs: evaluates the members and their combination, and writes a record and a
run."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bigmodel_jax.config import Config
from bigmodel_jax.config_checks import validate
from bigmodel_jax.core import params, sharding
from bigmodel_jax.core.params import Tree
from bigmodel_jax.core.precision import cast
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.ensemble import averages, predictions, soup, statistics
from bigmodel_jax.ensemble.members import AVERAGED, How, Member, open_members
from bigmodel_jax.report.counted import counting
from bigmodel_jax.report.writers import plain
from bigmodel_jax.sweep.metric import judged_by
from bigmodel_jax.training import new_run
from bigmodel_jax.training.beginning import open_data
from bigmodel_jax.training.checks import check_data
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import evaluate
from bigmodel_jax.training.set_evaluations import validation


class Asked(NamedTuple):
    """The verb's options, described there."""

    how: How = "predictions"
    metric: str = ""
    last: int = 0
    batches: int = 0
    run_dir: Path | None = None
    parallel: ParallelConfig = ParallelConfig()


@dataclasses.dataclass
class Kitchen:
    """State shared by the steps of making one ensemble.

    config: the first member's, for the evaluation. validation: batches of the validation split.
    """

    members: list[Member]
    asked: Asked
    config: Config
    mesh: Any
    validation: Any

    def judge(self, config: Config, model=None) -> Callable[[Tree, str], dict[str, float]]:
        """A function (merged parameters, text of the progress bar) -> scalars on the validation
        split."""
        step = make_eval_step(config, self.mesh, model)

        def scalars(weights: Tree, text: str) -> dict[str, float]:
            with counting(len(self.validation), f"Evaluating {text}") as advance:

                def counted(*args):
                    advance()
                    return step(*args)

                found = evaluate(config, counted, weights, self.validation)
            return {name: value for name, value in found.items() if isinstance(value, float)}

        return scalars

    @functools.cached_property
    def train(self) -> Any:
        """Training batches; opened only if statistics must be recomputed."""
        return open_data(self.config, self.mesh)[0]

    def finish(self, mean: Tree) -> tuple[Tree, tuple[str, ...]]:
        """(averaged weights in the form of a checkpoint with recomputed statistics, paths of these
        statistics)."""
        config = self.config
        weights = _as_stored(config, mean)
        if not statistics.renewed_by_batches(config):
            return weights, ()
        # This is the number of batches in one epoch, rounded up.
        one_pass = -(-len(self.train.rows) // config.train.batch_size)
        number = min(self.asked.batches or one_pass, one_pass)
        # Every candidate of a soup gets the same batches.
        self.train.seek(0)
        with counting(number, "Recomputing batch statistics") as advance:

            def batches() -> Iterator[dict]:
                for _ in range(number):
                    yield self.train.next(None)
                    advance()

            return statistics.recomputed(config, self.mesh, weights, batches())

    def trees(self) -> Iterator[Tree]:
        for member in self.members:
            yield member.weights(self.mesh)


def _as_stored(config: Config, weights: Tree) -> Tree:
    """Weights in the dtypes of the run's checkpoint; if it keeps an average of its weights,
    float32."""
    spec = config.make_model().spec
    dtype = "float32" if config.optim.ema_decay else config.precision.param
    return params.merge(weights, cast(params.of_kind(weights, spec, "trained"), dtype))


def make_ensemble(sources: list[str], asked: Asked) -> dict[str, Any]:
    """Evaluates and combines the members that `sources` name, and returns the record for the page.

    Raises ValueError, one line, and writes nothing, if the members do not fit or cannot be
    combined.
    """
    if asked.run_dir:
        # The folder is written last, so a folder that is taken must be refused before the
        # evaluations.
        new_run.check_free(asked.run_dir)
    members = open_members(sources, asked.last, asked.how, asked.parallel)
    first = members[0]
    # Vocabulary and scaling come from the run. A new vocabulary or a new scaling would not fit its
    # weights.
    config = dataclasses.replace(first.config, data=first.config.data.of_run(first.folder))
    validate(config, jax.device_count())
    key, direction = judged_by(config, asked.metric)
    if asked.how not in AVERAGED:
        predictions.check(config.objective, config.model, asked.how)
    check_data(config)
    mesh = sharding.make_mesh(config.parallel)
    kitchen = Kitchen(members, asked, config, mesh, validation(config, mesh, first.folder, resumes=True))
    # All members are judged on the same rows, each with its own model.
    alone = [kitchen.judge(dataclasses.replace(m.config, data=config.data))(m.weights(mesh), m.name) for m in members]
    if key not in alone[0]:
        raise ValueError(f"--metric {key}: the evaluation gave no such number; it gave {', '.join(sorted(alone[0]))}")
    record = {
        "how": asked.how,
        "metric": key,
        "better": "more" if direction == "maximize" else "less",
        "members": [{"name": m.name, "scalars": _plain(s)} for m, s in zip(members, alone, strict=True)],
    }
    make = {"weights": _weights, "soup": _soup}.get(asked.how, _predictions)
    return record | make(kitchen, alone, record)


def _plain(scalars: dict[str, float]) -> dict[str, Any]:
    return {name: plain(value) for name, value in scalars.items()}


def _predictions(kitchen: Kitchen, alone: list[dict], record: dict) -> dict[str, Any]:
    config, how = kitchen.config, kitchen.asked.how
    models = [m.config.make_model() for m in kitchen.members]
    model = predictions.combined(models, config.objective.predicts, how)
    # All members are in memory at once, since each batch passes through all of them.
    tree = {predictions.name_of(i): weights for i, weights in enumerate(kitchen.trees())}
    return {"scalars": _plain(kitchen.judge(config, model)(tree, "the ensemble"))}


def _weights(kitchen: Kitchen, alone: list[dict], record: dict) -> dict[str, Any]:
    mean = averages.mean(kitchen.trees(), kitchen.config.make_model().spec)
    weights, names = kitchen.finish(mean)
    scalars = kitchen.judge(kitchen.config)(weights, "the mean of the weights")
    _keep(kitchen, weights)
    return {"scalars": _plain(scalars), "recomputed": list(names)}


def _soup(kitchen: Kitchen, alone: list[dict], record: dict) -> dict[str, Any]:
    judge, names = kitchen.judge(kitchen.config), set()

    def finish(mean: Tree) -> Tree:
        weights, found = kitchen.finish(mean)
        names.update(found)
        return weights

    found = soup.greedy(
        lambda number: kitchen.members[number].weights(kitchen.mesh),
        alone,
        kitchen.config.make_model().spec,
        finish,
        lambda weights: judge(weights, "a soup"),
        record["metric"],
        record["better"] == "more",
    )
    _keep(kitchen, found.weights)
    order = [one._asdict() | {"name": kitchen.members[one.number].name} for one in found.order]
    return {"scalars": _plain(found.scalars), "order": order, "recomputed": sorted(names)}


def _keep(kitchen: Kitchen, weights: Tree) -> None:
    first = kitchen.members[0]
    new_run.write(first.config, first.folder, kitchen.asked.run_dir, weights)
