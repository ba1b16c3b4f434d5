"""A model, an objective with its metric, an optimizer and a source of one's own, each in a file of
one's own."""

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.data import TextData, TokenizerConfig
from own_parts.model import BigramConfig
from own_parts.optimizer import SignConfig
from own_parts.source import Counting
from own_parts.task import Smoothed


def get_config() -> Config:
    return Config(
        model=BigramConfig(),
        objective=Smoothed(),
        data=TextData(source=Counting(), tokenizer=TokenizerConfig("bytes"), seq_len=32),
        optim=SignConfig(lr=3e-3, warmup_steps=2),
        train=TrainConfig(steps=8, batch_size=8, log_every=1),
        eval=EvalConfig(every=4),
        checkpoint=CheckpointConfig(best_metric="eval/in_first_five", best_mode="max"),
    )
