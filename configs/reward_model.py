"""A reward model on SmolLM2-135M-Instruct, which gives an answer one number.

It reads data/pairs_train.jsonl and data/pairs_validation.jsonl. First run `uv run --extra
pretrained launch.py import smollm2-135m-instruct`. `uv run benchmarks/finetune_data.py data` writes
files to try it with: right and wrong sums. Records are pairs of answers (docs/preference.md).
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.objectives import RewardModel
from bigmodel_jax.optim import OptimConfig
from configs import dpo_smollm2


def get_config() -> Config:
    return dataclasses.replace(
        dpo_smollm2.get_config(),
        objective=RewardModel(center=0.01),
        optim=OptimConfig(lr=2e-5, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
    )
