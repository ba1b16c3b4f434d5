"""Adapters: a change of any model's spec, after which small matrices train beside a base that stays as it is."""

import dataclasses

from bigmodel_jax.models.base import Model, ModelConfig


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """No adapters; base of the configs of every kind of them."""

    def validate(self, config: ModelConfig, model: Model) -> None:
        """Raises ValueError where `model`, which `config` makes, cannot have these adapters."""

    def adapt(self, model: Model) -> Model:
        """The model whose base is constant and whose adapters are trained."""
        return model
