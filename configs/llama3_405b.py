"""Llama 3.1 405B from scratch on your own text, for 2,048 TPU v5p chips (8x16x16).

FSDP is over 1,024, and tensor parallelism over 2, which also shards the sequence between a layer's
products. `launch.py plan configs/llama3_405b.py --topology v5p:8x16x16` shows its needs and cost
(docs/plan.md).
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import ParallelConfig, Rules
from bigmodel_jax.models import Compute
from bigmodel_jax.models.llama import PRESETS
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(PRESETS["llama-3.1-405b"], compute=Compute(remat="full")),
        data=dataclasses.replace(base.data, seq_len=8192),
        optim=dataclasses.replace(base.optim, lr=8e-5, warmup_steps=8000),
        parallel=ParallelConfig(data=1, fsdp=-1, tensor=2, rules=Rules(residual_seq=("seq", "tensor"))),
        train=dataclasses.replace(base.train, batch_size=2048),
    )
