"""Connect Four learned from self-play with search alone: AlphaZero's form (arXiv:1712.01815) on a CPU.

A residual network of 124 thousand parameters; 64 games a round, 32 simulations a move. docs/self_play.md says how its games
are counted.
"""

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.data import SelfPlayData
from bigmodel_jax.models.board import BoardConfig
from bigmodel_jax.objectives import SelfPlay
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=BoardConfig(),
        objective=SelfPlay(),
        data=SelfPlayData(),
        optim=OptimConfig(lr=2e-3, warmup_steps=20, weight_decay=1e-2, final_lr_ratio=0.1),
        train=TrainConfig(steps=960, batch_size=256, log_every=8),
        eval=EvalConfig(every=160, batch_size=128),
        checkpoint=CheckpointConfig(every=160),
    )
