"""Llama 3 8B from scratch on your own text: set `data.source` and `data.tokenizer.path`.

It is meant for 256 TPU v5e chips, with one row of 4,096 tokens each. `launch.py plan
configs/llama3_8b.py --topology v5e:16x16` shows its needs and cost there (docs/plan.md). It has not
been run on such a machine.
"""

import dataclasses

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import JsonlFiles, TextData, TokenizerConfig
from bigmodel_jax.models import Compute
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

SEQ_LEN = 4096


def get_config() -> Config:
    return Config(
        model=dataclasses.replace(PRESETS["llama-3-8b"], compute=Compute(remat="full")),
        objective=NextToken(),
        data=TextData(
            source=JsonlFiles("data/train/*.jsonl", "data/validation/*.jsonl"),
            tokenizer=TokenizerConfig(path="data/tokenizer.model"),
            seq_len=SEQ_LEN,
        ),
        optim=OptimConfig(lr=3e-4, warmup_steps=2000),
        parallel=ParallelConfig(data=1, fsdp=-1),
        precision=Policy(compute="bfloat16"),
        train=TrainConfig(steps=100_000, batch_size=256),
        eval=EvalConfig(every=1000),
        checkpoint=CheckpointConfig(every=500),
    )
