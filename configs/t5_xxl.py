"""T5 v1.1 XXL (11 B) pretrained by span corruption on your own text, for 256 TPU v5e chips.

`launch.py plan configs/t5_xxl.py --topology v5e:16x16` shows its needs and cost (docs/plan.md).
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.data import SpanCorruptionData
from bigmodel_jax.models import StackCompute
from bigmodel_jax.models.t5 import PRESETS
from configs import llama3_8b


def get_config() -> Config:
    base = llama3_8b.get_config()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(PRESETS["t5-v1.1-xxl"], compute=StackCompute(remat="full"), max_seq_len=512),
        data=SpanCorruptionData(source=base.data.source, tokenizer=base.data.tokenizer, seq_len=512),
        optim=dataclasses.replace(base.optim, lr=1e-3, warmup_steps=10_000),
        train=dataclasses.replace(base.train, batch_size=2048),
    )
