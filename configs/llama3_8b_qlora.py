"""QLoRA of Llama 3 8B on one TPU v5e chip (16 GB): a double-quantized NF4 base, bfloat16 adapters.

`launch.py plan configs/llama3_8b_qlora.py --topology v5e:1x1` shows its needs (docs/plan.md). It
has not been run on such a machine.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.bases import BaseConfig
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        adapters=Lora(rank=16, base=BaseConfig("nf4", double=True, tables="bfloat16")),
        optim=dataclasses.replace(base.optim, lr=2e-4, warmup_steps=100, weight_decay=0.0),
        parallel=ParallelConfig(),
        precision=Policy(param="bfloat16", compute="bfloat16", rounding="stochastic"),
        train=dataclasses.replace(base.train, steps=2000, batch_size=4, microbatches=4, init_from="runs/llama3_8b"),
    )
