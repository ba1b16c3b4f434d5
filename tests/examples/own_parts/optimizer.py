"""An optimizer in one line of optax."""

import dataclasses

import optax

from bigmodel_jax.optim import OptimConfig


@dataclasses.dataclass(frozen=True)
class SignConfig(OptimConfig):
    momentum: float = 0.9

    def transformation(self, rate, spec):
        return optax.chain(optax.trace(self.momentum), optax.scale_by_sign(), optax.scale_by_learning_rate(rate))
