"""LoRA of Llama 3 70B on 64 TPU v5e chips (8x8), with a frozen bfloat16 base sharded over all of
them.

`launch.py plan configs/llama3_70b_lora.py --topology v5e:8x8` shows its needs (docs/plan.md). It
has not been run on such a machine.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.bases import BaseConfig
from configs import llama3_70b


def get_config() -> Config:
    base = llama3_70b.get_config()
    return dataclasses.replace(
        base,
        adapters=Lora(rank=16, base=BaseConfig("bfloat16", tables="bfloat16")),
        data=dataclasses.replace(base.data, seq_len=4096),
        optim=dataclasses.replace(base.optim, lr=2e-4, warmup_steps=100, weight_decay=0.0),
        train=dataclasses.replace(base.train, steps=2000, batch_size=64, init_from="runs/llama3_70b"),
    )
