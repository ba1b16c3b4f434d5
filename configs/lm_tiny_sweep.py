"""The search space of lm_tiny.py: training recipes for the same data and number of tokens.

The search evaluates on the first half of the validation addresses. The second half is left for a
final evaluation: `launch.py eval RUN --data.source.eval_split "validation[50%:]"`.
"""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.sweep.space import choice, log, uniform
from configs import lm_tiny

SPACE = {
    "optim.name": choice("adamw", "muon"),
    "optim.lr": log(3e-3, 5e-2),
    "optim.betas": choice((0.9, 0.95), (0.9, 0.98), (0.9, 0.99)),
    "optim.weight_decay": uniform(0.0, 0.4),
    "model.qk_norm": choice(False, True),
    # The same number of tokens in fewer or more updates, of 1,024 or 512 tokens each.
    "train": choice(
        TrainConfig(steps=900, batch_size=8),
        TrainConfig(steps=1800, batch_size=4),
    ),
}


def get_config() -> Config:
    config = lm_tiny.get_config()
    source = dataclasses.replace(config.data.source, eval_split="validation[:50%]")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=source),
        eval=EvalConfig(batch_size=32, every=300),
    )
