"""Qwen3-Next 80B-A3B from scratch on your own text, for 256 TPU v5p chips: FSDP over 16, experts
over 16.

`launch.py plan configs/qwen3_next_80b.py --topology v5p:4x8x8` shows its needs and cost
(docs/plan.md): 52.3 GiB a chip, and 4.5 s a step of 2.1 million tokens. The MFU is 9.5 %, because
reading and writing HBM takes five times as long as the products.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import Compute
from bigmodel_jax.models.qwen_next import PRESETS
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(PRESETS["qwen3-next-80b-a3b"], compute=Compute(remat="full"), expert_buffer=1.5),
        parallel=ParallelConfig(data=1, fsdp=-1, expert=16),
        train=dataclasses.replace(base.train, batch_size=512),
    )
