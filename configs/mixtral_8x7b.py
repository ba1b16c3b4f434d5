"""Mixtral 8x7B from scratch on your own text, for 256 TPU v6e chips, two rows of 4,096 tokens each.

Each of 8 chips in a group holds one expert, with room for 1.5 times its even share of the tokens.
`launch.py plan configs/mixtral_8x7b.py --topology v6e:16x16` shows its needs and cost
(docs/plan.md).
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import Compute
from bigmodel_jax.models.mixtral import PRESETS
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(PRESETS["mixtral-8x7b"], compute=Compute(remat="full"), expert_buffer=1.5),
        parallel=ParallelConfig(data=1, fsdp=-1, expert=8),
        train=dataclasses.replace(base.train, batch_size=512),
    )
