"""Objectives: `loss(model, params, batch, rng, train) -> Loss`, one task per file."""

from bigmodel_jax.objectives.base import Loss, Objective
from bigmodel_jax.objectives.classification import Classification
from bigmodel_jax.objectives.language_model import NextToken
from bigmodel_jax.objectives.regression import Regression

OBJECTIVES: dict[str, type[Objective]] = {
    "next_token": NextToken,
    "classification": Classification,
    "regression": Regression,
}

__all__ = ["OBJECTIVES", "Classification", "Loss", "NextToken", "Objective", "Regression"]
