"""DPO of Llama 3 8B with LoRA on your own pairs of answers, for four TPU v5e chips.

First run `launch.py import Meta-Llama-3-8B-Instruct --run_dir runs/llama3_8b_instruct`. `launch.py
plan configs/llama3_8b_dpo.py --topology v5e:2x2` shows its needs (docs/plan.md). It has not been
run on such a machine.
"""

import dataclasses

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.preference_data import PreferenceData
from bigmodel_jax.models import Compute
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.bases import BaseConfig
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import DPO
from bigmodel_jax.optim import OptimConfig

RUN = "runs/llama3_8b_instruct"


def get_config() -> Config:
    return Config(
        model=dataclasses.replace(PRESETS["llama-3-8b"], compute=Compute(remat="full")),
        objective=DPO(beta=0.1, reference="adapters_off"),  # the reference costs a forward pass per step, but no memory
        data=PreferenceData(
            source=TableFiles(train="data/pairs_train.jsonl", validation="data/pairs_validation.jsonl"),
            tokenizer_path=f"{RUN}/tokenizer.json",
            template_path=f"{RUN}/chat_template.jinja",
            seq_len=2048,
        ),
        optim=OptimConfig(lr=5e-6, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
        parallel=ParallelConfig(data=1, fsdp=-1),
        precision=Policy(compute="bfloat16"),
        train=TrainConfig(steps=2000, batch_size=16, microbatches=4, init_from=RUN),
        eval=EvalConfig(every=200),
        checkpoint=CheckpointConfig(every=200),
        adapters=Lora(rank=16, base=BaseConfig("bfloat16", tables="bfloat16")),
    )
