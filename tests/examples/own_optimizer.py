"""An optimizer of one's own: any optax transformation in one line, a schedule in another, and
groups of parameters."""

import dataclasses

import optax

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.core.ranges import Positive
from bigmodel_jax.data import TextData
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import Group, OptimConfig


@dataclasses.dataclass(frozen=True)
class CentralizedConfig(OptimConfig):
    """AdamW on gradients without their mean (arXiv:2004.01461), at a rate that halves every
    `half_life` updates."""

    half_life: Positive = 100.0

    def transformation(self, rate, spec):
        return optax.chain(optax.centralize(), optax.adamw(rate, *self.betas, self.eps))

    def schedule_fn(self, total_steps):
        return lambda update: self.lr * 0.5 ** (update / self.half_life)


def get_config() -> Config:
    return Config(
        model=LlamaConfig(vocab_size=8192, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=4, mlp_dim=128),
        objective=NextToken(),
        data=TextData(seq_len=256),
        optim=CentralizedConfig(
            lr=3e-3,
            groups=(
                Group("embed/.*", freeze=True),
                Group("layers/attn/.*", lr=1e-3),
                Group("layers/mlp/.*", optimizer="muon"),
            ),
        ),
        train=TrainConfig(steps=200, batch_size=8),
    )
