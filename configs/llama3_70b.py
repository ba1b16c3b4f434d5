"""Llama 3 70B from scratch on your own text, for 512 TPU v5p chips (8x8x8), two rows of 8,192
tokens each.

`launch.py plan configs/llama3_70b.py --topology v5p:8x8x8` shows its needs and cost (docs/plan.md).
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models import Compute
from bigmodel_jax.models.llama import PRESETS
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(PRESETS["llama-3-70b"], compute=Compute(remat="full")),
        data=dataclasses.replace(base.data, seq_len=8192),
        optim=dataclasses.replace(base.optim, lr=1.5e-4),
        train=dataclasses.replace(base.train, batch_size=1024),
    )
