"""Objectives that compare a model with another one that stays as it is, its reference: three ways to its log-probabilities."""

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

REFERENCE = "reference"  # the array of a batch, and the branch of the parameters


@dataclasses.dataclass(frozen=True)
class Referenced(Objective):
    """Reads batch["reference"] (B, 2) float32: the reference's log-probability of each answer, in nats."""

    causal: ClassVar[bool] = True
    texts: ClassVar[int] = 2

    reference: Literal["cached", "constants", "adapters_off"] = "cached"
    "cached: computed for every row before the first step, and kept; constants: a second set of weights beside the trained "
    "ones; adapters_off: the trained model without its adapters"
    reference_run: str = ""
    "the run, as train.init_from writes it, whose weights the reference has; empty: those with which this run begins"
    reference_storage: BaseConfig = BaseConfig()
    "how the reference's weights are kept, as adapters.base says it: of 'constants' alone"
    logits: Form = "auto"
    'in memory ("whole") or block by block of the vocabulary; auto: blocks where they are large'

    @property
    def scores(self) -> bool:
        """A cached reference is an array of the batch; the others are a second call of the model."""
        return self.reference == "cached" and type(self).score is not Objective.score

    @property
    def compares_without_adapters(self) -> bool:
        return self.reference == "adapters_off"

    def computed(self) -> dict[str, Field]:
        return {REFERENCE: Field((2,))} if self.reference == "cached" else {}

    def parameters(self, model: ModelConfig) -> Tree:
        if self.reference != "constants":
            if self.reference_storage != BaseConfig():
                raise ValueError(
                    f"objective.reference_storage with objective.reference = {self.reference!r}: only 'constants' are "
                    "weights of the reference's own; leave it out, or take 'constants'"
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
        """The weights of the reference among all; no gradient of them is computed."""
        if self.reference == "constants":
            return jax.lax.stop_gradient(params[REFERENCE])
        if lora.BRANCH not in params:
            raise ValueError(
                "objective.reference = 'adapters_off': this run trains no adapters (adapters); allowed: 'cached', 'constants'"
            )
        return jax.lax.stop_gradient(lora.without_adapters(params))

    def log_probs(self, model: Model, params: Any, batch: dict) -> jax.Array:
        """(B, 2): what the model says of each row's two texts, without dropout; statistics stay as they are."""
        batch = pairs.flat(batch)
        out = model.apply(params, batch, rng=None, train=False)
        return pairs.texts_of(pairs.nats_of(out, batch, self.logits), batch).log_probs
