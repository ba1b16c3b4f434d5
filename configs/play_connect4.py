"""Connect Four learned from self-play with search alone: AlphaZero's form (arXiv:1712.01815) on a CPU.

A residual network of 124 thousand parameters; 64 games a round, 120 rounds, 32 simulations a move. After 400 of the steps,
with a schedule of as many, it won 98.9 % of 1,024 games against a random player and 83.6 % against minimax of depth 2; with
its initial weights, 93 % and 23 % of 128. Those steps took 15 minutes on 2 CPU cores that were busy with other work.
docs/self_play.md says how games are counted.
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
