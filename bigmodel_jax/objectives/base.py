"""What an objective is: a loss over a batch, as sums; best as the score of what one call of the model gives."""

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
    """mean: the quantity to minimise, as (sum, count); metrics: further sums; updates: non-trainable values by path."""

    mean: Mean
    metrics: dict[str, Mean]
    updates: dict[str, jax.Array]


class Judging(NamedTuple):
    """What becomes of the answers that a policy samples; the default is that of an objective without rewards.

    functions: the reward functions by name. seconds: the limit of one call. errors: answers of a rollout whose reward may
    fail. resamples: attempts to replace groups of equal rewards. cut_off: whether an answer without an end counts.
    reference: whether a batch holds the reference's log-probabilities.
    """

    functions: tuple[str, ...] = ()
    seconds: float = 0.0
    errors: int = 0
    resamples: int = 0
    cut_off: bool = True
    reference: bool = False


def held_out_loss(unit: str, headline: bool = False) -> Metric:
    return Metric("loss", "Held-out loss", "less", "{:.3f}", unit, headline)


def evaluated(objective: "Objective | type[Objective]", data: Any, names: Sequence[str] = ()) -> tuple[Metric, ...]:
    """What an evaluation of them reports; names: of further metrics. data: a `DataConfig`, or a class of them."""
    of_groups = groups.declared(objective.row_metrics[0]) if data.group_by and objective.row_metrics else ()
    return (*objective.metrics, *further.declared(names), *of_groups)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of every objective's config: `score` where one call of the model is enough, `loss` where it is not. `params` are
    the merged parameters, already in the compute dtype."""

    metrics: ClassVar[tuple[Metric, ...]] = (held_out_loss(""),)
    "what an evaluation reports; a number that is not declared is shown under its own name"
    row_metrics: ClassVar[tuple[Metric, ...]] = ()
    "what `of_rows` gives; groups of rows are compared by the first"
    reads: ClassVar[tuple[str, ...]] = ()
    "the arrays of a training batch that `loss` reads, beside the model's own inputs; (): not declared, and not checked"
    takes: ClassVar[tuple[str, ...]] = ()
    "arrays of a training batch that `loss` reads where the data has them: without it, data that has one is refused"
    makes: ClassVar[tuple[str, ...]] = ()
    "inputs of the model that `loss` makes itself, so that the data need not give them"
    causal: ClassVar[bool] = False
    "whether a token's loss depends on earlier tokens alone, so that attention kernels skip what lies ahead"
    texts: ClassVar[int] = 0
    "how many texts a row of its batches has: tokens (T,) of one, or (texts, T); 0: not declared, and not checked"
    predicts: ClassVar[Literal["", "classes", "numbers"]] = ""
    """what the model's output is, so that the outputs of several models have a mean: logits of classes along its last
    dimension, or numbers; "": not declared, and they have none"""
    whole_batch: ClassVar[bool] = False
    "whether an example's loss depends on all others of its batch, so that a batch cannot be cut into pieces"
    endings: ClassVar[tuple[Any, ...]] = ("text",)
    "what a run makes at its end: names of ENDINGS in training/ending.py, or an `Ending` of one's own"

    def parameters(self, model: ModelConfig) -> Tree:
        """The spec of what it keeps beside the parameters of `model`, by names that the model does not use: a trained head,
        or the constants of a reference."""
        return {}

    def sources(self) -> dict[str, str]:
        """The run, as `train.init_from` writes it, from which the values of each of these names come; others are initial."""
        return {}

    @property
    def compares_without_adapters(self) -> bool:
        """Whether it compares with the model without its adapters."""
        return False

    def judging(self) -> Judging:
        """How the answers that a run's policy samples are judged."""
        return Judging()

    def rollout_cache(self, data: Any, batch_size: int) -> tuple[int, int] | None:
        """(rows, columns) of the decode cache that lives beside the step where a run samples with its own weights."""
        return None

    def computed(self) -> dict[str, Field]:
        """What a run computes for each row before its first step and puts beside the data's arrays (training/reference.py)."""
        return {}

    def validate(self, config: Any) -> None:
        """Raises ValueError where a run of `config` cannot have it, before data is opened or anything is compiled."""

    def inputs(self, batch: dict, rng: jax.Array | None) -> tuple[dict, jax.Array | None]:
        """What the model reads, which `score` gets as its batch, and the model's key."""
        return batch, rng

    def score(self, out: Out, batch: dict, *, params: Any, train: bool) -> Loss:
        """The loss of what the model gave for `batch`; params: at least those outside its stack of layers."""
        raise NotImplementedError(f"{type(self).__name__} defines neither score() nor loss()")

    def of_rows(self, out: Out, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
        """(values, weights), (B,) each, of the rows of an evaluation's batch, by the names of `row_metrics`."""
        return {}

    def loss(self, model: Model, params: Any, batch: dict, *, rng: jax.Array | None, train: bool) -> Loss:
        batch, rng = self.inputs(batch, rng)
        return self.score(model.apply(params, batch, rng=rng, train=train), batch, params=params, train=train)

    @property
    def scores(self) -> bool:
        """Whether `score` is the whole of its training loss: no `loss` was defined after it."""
        first = {
            name: next(i for i, c in enumerate(type(self).__mro__) if name in vars(c)) for name in ("score", "loss")
        }
        return type(self).score is not Objective.score and first["score"] <= first["loss"]

    def summarize(self, metrics: dict[str, Mean]) -> dict[str, float]:
        """Scalars of one evaluation from its summed metrics, without the "eval/" in front."""
        return {k: float(m.compute()) for k, m in metrics.items()}

    def tables(self, metrics: dict[str, Mean]) -> dict[str, list]:
        """What else an evaluation records of them, by name, as lists of numbers: a confusion matrix."""
        return {}
