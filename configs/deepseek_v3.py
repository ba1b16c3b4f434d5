"""DeepSeek-V3 671B from scratch on your own text, for 2,048 TPU v5p chips: FSDP over 64, experts
over 32.

`launch.py plan configs/deepseek_v3.py --topology v5p:8x16x16` shows its needs and cost
(docs/plan.md).
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import Compute
from bigmodel_jax.models.deepseek import PRESETS
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(
            PRESETS["deepseek-v3"], compute=Compute(remat="full"), num_mtp_layers=1, expert_buffer=1.5
        ),
        optim=dataclasses.replace(base.optim, lr=2.2e-4),
        parallel=ParallelConfig(data=1, fsdp=-1, expert=32),
        train=dataclasses.replace(base.train, batch_size=2048),
    )
