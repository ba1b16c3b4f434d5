"""`Referenced`, the base class of objectives that compare the model with a constant reference
model.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax

from bigmodel_jax.core.params import Tree
from bigmodel_jax.data.fields import Field
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.nn import lora
from bigmodel_jax.nn.head import Form
from bigmodel_jax.objectives import pairs
from bigmodel_jax.objectives.base import Loss, Objective

REFERENCE = "reference"  # name of the batch's array and of the branch of parameters


@dataclasses.dataclass(frozen=True)
class Referenced(Objective):
    """Reads batch["reference"] (B, 2) float32, the reference's log-probability of each answer in
    nats.

    `reference` chooses one of three ways to get these log-probabilities.
    """

    causal: ClassVar[bool] = True
    texts: ClassVar[int] = 2

    reference: Literal["cached", "constants", "adapters_off"] = "cached"
    """cached: log-probabilities computed before the first step and kept; constants: a second set of
    weights; adapters_off: the trained model without its adapters"""
    reference_run: str = ""
    """the run with the reference's weights, named as in train.init_from; empty: this run's initial
    weights"""
    reference_storage: BaseConfig = BaseConfig()
    "how the weights of 'constants' are stored, as in adapters.base"
    logits: Form = "auto"
    '"whole" logits in memory, or "blocks" of the vocabulary; auto: blocks if large'

    @property
    def scores(self) -> bool:
        """Whether `score` alone is the loss: only a cached reference needs no second call of a
        model.
        """
        return self.reference == "cached" and type(self).score is not Objective.score

    @property
    def compares_without_adapters(self) -> bool:
        return self.reference == "adapters_off"

    def computed(self) -> dict[str, Field]:
        return {REFERENCE: Field((2,))} if self.reference == "cached" else {}

    def compute(self, model: Model, params: Any, batch: dict) -> jax.Array:
        return self.log_probs(model, params, batch)

    def parameters(self, model: ModelConfig) -> Tree:
        if self.reference != "constants":
            if self.reference_storage != BaseConfig():
                raise ValueError(
                    f"objective.reference_storage with objective.reference = {self.reference!r}: only 'constants' "
                    "stores weights of the reference; leave it out, or take 'constants'"
                )
            return {}
        if not self.reference_run:
            raise ValueError(
                "objective.reference = 'constants' needs objective.reference_run, the run whose weights the reference has; "
                "'cached' takes those with which this run begins"
            )
        return {REFERENCE: self.reference_storage.of_another(model.make().spec, "objective.reference_storage")}

    def sources(self) -> dict[str, str]:
        return {REFERENCE: self.reference_run} if self.reference == "constants" else {}

    def loss(self, model, params, batch, *, rng, train) -> Loss:
        if self.reference != "cached":
            batch = batch | {REFERENCE: self.log_probs(model, self.reference_weights(params), batch)}
        elif REFERENCE not in batch:
            raise ValueError(
                "objective.reference = 'cached': the batch has no 'reference'; a run computes it before the first step"
            )
        return super().loss(model, params, batch, rng=rng, train=train)

    def reference_weights(self, params: Tree) -> Tree:
        """The reference model's parameters, with the gradient stopped."""
        if self.reference == "constants":
            return jax.lax.stop_gradient(params[REFERENCE])
        if lora.BRANCH not in params:
            raise ValueError(
                "objective.reference = 'adapters_off': this run trains no adapters (adapters); allowed: 'cached', 'constants'"
            )
        return jax.lax.stop_gradient(lora.without_adapters(params))

    def log_probs(self, model: Model, params: Any, batch: dict) -> jax.Array:
        """(B, 2): log-probabilities of each row's two texts, without dropout or updates of
        statistics.
        """
        batch = pairs.flat(batch)
        out = model.apply(params, batch, rng=None, train=False)
        return pairs.texts_of(pairs.nats_of(out, batch, self.logits), batch).log_probs
