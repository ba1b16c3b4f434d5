"""`Objective`, the base class of all losses, which are sums over a batch and their counts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax

from bigmodel_jax.core.metrics import Mean, Metric
from bigmodel_jax.core.params import Tree
from bigmodel_jax.data.fields import Field
from bigmodel_jax.metrics import further, groups
from bigmodel_jax.models.base import Model, ModelConfig, Out


class Loss(NamedTuple):
    """The result of an objective on one batch.

    mean: the quantity to minimise, as a sum and a count.
    metrics: further sums and counts, by name.
    updates: new values of parameters that are not trained, by path.
    """

    mean: Mean
    metrics: dict[str, Mean]
    updates: dict[str, jax.Array]


class Judging(NamedTuple):
    """How the answers that a policy samples are rewarded. The defaults mean: no rewards.

    functions: names of the reward functions.
    seconds: time limit of one call of a reward function.
    errors: number of answers per rollout whose reward may fail.
    resamples: number of attempts to replace groups whose rewards are all equal.
    cut_off: whether an answer without an end token counts.
    reference: whether a batch holds the reference model's log-probabilities.
    """

    functions: tuple[str, ...] = ()
    seconds: float = 0.0
    errors: int = 0
    resamples: int = 0
    cut_off: bool = True
    reference: bool = False


def held_out_loss(unit: str, headline: bool = False) -> Metric:
    """The declaration of the metric "loss" on held-out data, in `unit`."""
    return Metric("loss", "Held-out loss", "less", "{:.3f}", unit, headline)


def evaluated(objective: "Objective | type[Objective]", data: Any, names: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics that an evaluation of an objective on this data reports.

    `data` is a `DataConfig` or its class. `names` are the additional metrics of
    `eval.metrics`.
    """
    of_groups = groups.declared(objective.row_metrics[0]) if data.group_by and objective.row_metrics else ()
    return (*objective.metrics, *further.declared(names), *of_groups)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base class of every objective's config.

    A subclass defines `score` where one call of the model is enough, and `loss` otherwise. Both get
    `params`, the merged parameters in the compute dtype.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (held_out_loss(""),)
    "metrics that an evaluation reports; others are shown under their plain name"
    row_metrics: ClassVar[tuple[Metric, ...]] = ()
    "metrics that `of_rows` returns; groups of rows are compared by the first one"
    reads: ClassVar[tuple[str, ...]] = ()
    """arrays of a training batch that `loss` reads beside the model's inputs; (): not declared or
    checked"""
    takes: ClassVar[tuple[str, ...]] = ()
    """optional arrays that `loss` reads where the data has them; data with arrays that nobody reads
    is refused"""
    makes: ClassVar[tuple[str, ...]] = ()
    "model inputs that `loss` computes, so that the data need not have them"
    causal: ClassVar[bool] = False
    """whether a token's loss depends only on earlier tokens, so that attention kernels may skip
    later ones"""
    texts: ClassVar[int] = 0
    "number of texts per row: tokens are (T,) for one, else (texts, T); 0: not declared or checked"
    predicts: ClassVar[Literal["", "classes", "numbers"]] = ""
    """what the model's output is: logits of classes along the last dimension, or numbers. An
    ensemble averages the outputs accordingly; "": not declared, so there is no ensemble"""
    whole_batch: ClassVar[bool] = False
    "whether an example's loss depends on its whole batch, so that a batch cannot be split"
    computed_from: ClassVar[tuple[str, ...]] = ("tokens", "targets", "weights")
    "arrays of a row on which the values of `computed` depend"
    computed_with: ClassVar[str] = ""
    """the branch of `parameters` that alone makes the values of `computed`; empty: the whole model
    makes them"""
    instead_of_texts: ClassVar[str] = ""
    "what a run produces if it does not continue a user's text; empty: it continues texts"
    answers_by: ClassVar[str] = ""
    "the branch of `parameters` that makes the answer; empty: the model's own output is the answer"
    endings: ClassVar[tuple[Any, ...]] = ("text",)
    """what a run produces at its end: names in ENDINGS of training/ending.py, or instances of
    `Ending`"""

    def parameters(self, model: ModelConfig) -> Tree:
        """The spec of parameters that the objective adds to those of `model`, such as a head.

        The names must not occur in the model. A reference model's constants are such parameters
        too.
        """
        return {}

    def sources(self) -> dict[str, str]:
        """Maps names of `parameters` to the runs that hold their values, as `train.init_from` names
        runs.

        Parameters that are not listed begin with initial values.
        """
        return {}

    def vocabularies(self) -> dict[str, str]:
        """Maps fields of the objective to runs that read the tokens of this run's data.

        Each of these runs must have the same vocabulary.
        """
        return self.sources()

    @property
    def compares_without_adapters(self) -> bool:
        """Whether the loss also needs the model's output without its adapters."""
        return False

    def judging(self) -> Judging:
        """How the answers that the run's policy samples are rewarded."""
        return Judging()

    def rollout_cache(self, data: Any, batch_size: int) -> tuple[int, int] | None:
        """The decode cache's size (rows, columns) where a run samples from its own weights, else
        None.
        """
        return (min(data.slots, batch_size), data.seq_len) if data.prompts else None

    def computed(self) -> dict[str, Field]:
        """Arrays that a run computes for every row before its first step
        (training/reference.py).
        """
        return {}

    def computed_by(self, model: ModelConfig) -> Any:
        """What the values of `computed` depend on beside weights and rows. Its repr is in the cache
        key.
        """
        return model

    def compute(self, model: Model, params: Any, batch: dict) -> jax.Array:
        """The values (B, ...) of the one array of `computed`."""
        raise NotImplementedError(f"{type(self).__name__} defines computed() without compute()")

    def requirements(self, data: Any) -> dict[str, int]:
        """The least values of a model's config fields with which it can learn from `data`, by
        name.
        """
        return {}

    def validate(self, config: Any) -> None:
        """Raises ValueError where the objective does not fit `config`, before data is opened."""

    def inputs(self, batch: dict, rng: jax.Array | None) -> tuple[dict, jax.Array | None]:
        """The batch that the model and `score` get, and the model's random key."""
        return batch, rng

    def score(self, out: Out, batch: dict, *, params: Any, train: bool) -> Loss:
        """The loss of the model's output `out` on `batch`.

        `params` has at least the parameters outside the stack of layers.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither score() nor loss()")

    def of_rows(self, out: Out, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Per-row metrics of an evaluation batch: (values (B,), weights (B,)) by names of
        `row_metrics`.
        """
        return {}

    def loss(self, model: Model, params: Any, batch: dict, *, rng: jax.Array | None, train: bool) -> Loss:
        """The loss of `model` on `batch`. The default calls the model once, then `score`."""
        batch, rng = self.inputs(batch, rng)
        return self.score(model.apply(params, batch, rng=rng, train=train), batch, params=params, train=train)

    @property
    def scores(self) -> bool:
        """Whether `score` alone is the training loss: no subclass after it has redefined `loss`."""
        # If the class that defines `loss` inherits `score`, its loss is more than the score.
        first = {
            name: next(i for i, c in enumerate(type(self).__mro__) if name in vars(c)) for name in ("score", "loss")
        }
        return type(self).score is not Objective.score and first["score"] <= first["loss"]

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        """The numbers of an evaluation from its summed metrics, named without the prefix
        "eval/".
        """
        return {k: float(m.compute()) for k, m in metrics.items()}

    def tables(self, metrics: dict[str, Mean]) -> dict[str, list]:
        """Tables of an evaluation by name, as lists of numbers, such as a confusion matrix."""
        return {}
