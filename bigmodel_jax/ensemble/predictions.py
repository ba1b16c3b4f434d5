"""A model made of several models, whose prediction is the mean of their predictions."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.objectives import Objective


def name_of(number: int) -> str:
    """The key under which the ensemble's parameters hold those of a member."""
    return f"member{number}"


def mean_probabilities(*logits: jax.Array) -> jax.Array:
    """The log of the members' mean of softmax(logits), float32. Each input is (..., C).

    Source: deep ensembles, arXiv:1612.01474, equation 4.
    """
    logs = [jax.nn.log_softmax(x.astype(jnp.float32), axis=-1) for x in logits]
    total = logs[0]
    for x in logs[1:]:
        # The mean is computed in log space, so that small probabilities do not underflow.
        total = jnp.logaddexp(total, x)
    return total - jnp.log(float(len(logs)))


def mean_values(*values: jax.Array) -> jax.Array:
    """The members' mean, float32. For logits this is the geometric mean of the probabilities."""
    return sum(x.astype(jnp.float32) for x in values) / len(values)


def check(objective: Objective, model_config, how: Literal["predictions", "logits"]) -> None:
    """Raises ValueError, one line, if the objective's predictions cannot be averaged."""
    name = type(objective).__name__
    # An objective looks for its own parameters at the tree's top, where the ensemble holds members.
    if not (objective.predicts and objective.scores) or objective.parameters(model_config):
        raise ValueError(
            f"--how = {how!r}: {name} does not declare predictions of which a mean can be taken; --how weights averages "
            "the weights instead"
        )
    if how == "logits" and objective.predicts == "numbers":
        raise ValueError(f"--how = 'logits': {name} predicts numbers, which have no logits; use --how predictions")


def combined(models: Sequence[Model], predicts: str, how: Literal["predictions", "logits"]) -> Model:
    """The ensemble's model: its parameters are {"member0": ..., "member1": ...}, and its output is
    a mean.

    predicts: "classes" or "numbers" (objectives/base.py). A mean of probabilities is returned as
    its logarithm, which every objective for classes accepts as logits.
    """
    mean = mean_probabilities if predicts == "classes" and how == "predictions" else mean_values

    def apply(tree: params.Tree, batch: dict, *, rng=None, train: bool = False, cache=None) -> Out:
        outs = [model.apply(tree[name_of(i)], batch, rng=None, train=False).value for i, model in enumerate(models)]
        return Out(jax.tree.map(mean, *outs))

    return Model({name_of(i): model.spec for i, model in enumerate(models)}, apply)
