"""A run's named evaluation sets: rows go through the eval step, prompts through the generator."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bigmodel_jax import eval_sets
from bigmodel_jax.config import Config
from bigmodel_jax.core import params, processes
from bigmodel_jax.data.loader import EvalBatches, eval_batches
from bigmodel_jax.training import reference
from bigmodel_jax.training.checks import check_data
from bigmodel_jax.training.eval_step import make_eval_step
from bigmodel_jax.training.evaluate import check_metrics, evaluate
from bigmodel_jax.training.held_out import HeldOut
from bigmodel_jax.training.scored_answers import ScoredAnswers


@dataclasses.dataclass(frozen=True)
class OpenSet:
    """An evaluation set that is open.

    option: the config field that holds it.
    config: the run's config with this set's data and metrics.
    source: its batches, or its prompts.
    step: the set's own eval step; None if it uses the run's.
    """

    option: str
    config: Config
    source: EvalBatches | HeldOut | ScoredAnswers
    step: Callable | None

    @property
    def name(self) -> str:
        return self.config.eval.sets[0].name

    def due(self, step: int, whole: bool) -> bool:
        """Whether the set is evaluated after this step. `whole` says whether the run itself is."""
        every = self.config.eval.sets[0].every
        return due(step, every) if every else whole

    def check(self, run_step: Callable, weights: params.Tree) -> None:
        """Raises ValueError where an additional metric cannot be computed; compiles nothing."""
        if not isinstance(self.source, ScoredAnswers):
            with eval_sets.named(self.option, self.name):
                check_metrics(self.config, self.step or run_step, weights, self.source)

    def evaluate(self, run_step: Callable, weights: params.Tree, show: Path | None = None) -> dict[str, Any]:
        """The set's results, named "eval/NAME/...". First answers are written to the file
        `show`.
        """
        with eval_sets.named(self.option, self.name):
            if isinstance(self.source, ScoredAnswers):
                found = self.source.evaluate(weights, show)
            else:
                found = evaluate(self.config, self.step or run_step, weights, self.source)
        return {f"eval/{self.name}/{key.removeprefix('eval/')}": value for key, value in found.items()}


def open_sets(config: Config, mesh: Mesh, run_dir: Path, *, resumes: bool, console: Any = None) -> list[OpenSet]:
    """Opens every evaluation set of the run, and prepares its rows in the cache.

    `resumes` and `console` are as in `reference.find`. Raises a one-line ValueError that names the
    set.
    """
    run = config.data.open_tokenizer() if config.eval.sets else None
    if processes.place()[1] > 1:  # this part has no collectives, so process 0 prepares the rows first
        processes.in_turn("sets", lambda: [own.data.open("validation") for _, own in eval_sets.seen(config)])
    found = []
    for option, own in eval_sets.seen(config):
        one = own.eval.sets[0]
        with eval_sets.named(option, one.name):
            check_data(own)
            _check_tokenizer(own, run)
            source = _source(own, mesh, run_dir, resumes, console)
        # The run's compiled eval step serves a set that computes the same metrics.
        shared = not (
            one.objective or own.eval.metrics or own.data.group_by or config.eval.metrics or config.data.group_by
        )
        step = None if shared else make_eval_step(own, mesh, config.make_model())
        found.append(OpenSet(option, own, source, step))
    return found


def _source(own: Config, mesh: Mesh, run_dir: Path, resumes: bool, console: Any) -> Any:
    if own.data.prompts and own.eval.sets[0].metrics:
        return ScoredAnswers(own, mesh)
    return validation(own, mesh, run_dir, resumes=resumes, console=console)


def validation(
    config: Config, mesh: Mesh, run_dir: Path, *, resumes: bool, console: Any = None
) -> EvalBatches | HeldOut:
    """The batches of the validation split of `config.data`, or the answers to its prompts."""
    if config.data.prompts:
        return HeldOut(config, mesh)
    made = config.data.held_out(config, mesh)
    if made is not None:
        return made
    data = reference.find(config, mesh, run_dir, resumes=resumes, console=console, splits=("validation",)).data
    size = config.eval.batch_size or config.train.batch_size
    return eval_batches(data, batch_size=size, mesh=mesh, rules=config.parallel.rules)


def _check_tokenizer(own: Config, run: Any) -> None:
    """Raises ValueError where the set's tokenizer differs from the run's."""
    theirs = own.data.open_tokenizer()
    if run is not None and theirs is not None and _vocabulary(run) != _vocabulary(theirs):
        raise ValueError(
            "its data has another tokenizer than the run's; name the run's own, or derive it from the run's data: "
            "dataclasses.replace(config.data, source=...) with the same training split"
        )


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    return tokenizer.model.get_vocab()


def due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; False for every = 0."""
    return every > 0 and step % every == 0


def check_all(config: Config, run_step: Callable, weights: params.Tree, validation: Any, sets: list[OpenSet]) -> None:
    """Raises ValueError where an additional metric of the run or of a set cannot be computed.

    Nothing is compiled.
    """
    check_metrics(config, run_step, weights, validation)
    for one in sets:
        one.check(run_step, weights)


def evaluate_all(
    sets: Sequence[OpenSet], run_step: Callable, weights: params.Tree, run_dir: Path, step: int
) -> dict[str, Any]:
    """The results of these sets. Their first answers are written to the run's samples/."""
    found = {}
    for one in sets:
        found |= one.evaluate(run_step, weights, run_dir / "samples" / f"{step:08d}.{one.name}.jsonl")
    return found


def judged(metric: str, all_sets: Sequence[OpenSet], now: Sequence[OpenSet], whole: bool) -> bool:
    """Whether this evaluation computes `metric`, by which the best save is chosen.

    `now` has the sets that are evaluated. `whole` says whether the validation split is evaluated
    too.
    """
    owner = next((one for one in all_sets if metric.startswith(f"eval/{one.name}/")), None)
    # A set may have a rhythm of its own, so its metric is there only when it is evaluated.
    return whole if owner is None else owner in now
