"""Distils SmolLM2-135M-Instruct into a decoder of 35 million parameters, on your own conversations.

First run `uv run --extra pretrained launch.py import smollm2-135m-instruct`: its folder provides
teacher, tokenizer and chat template. Put conversations into data/train.jsonl and
data/validation.jsonl, as for sft_smollm2.py.

Cost: a step of 4 rows of 256 tokens is 0.5 TFLOP; the teacher's forward pass is more than half of
it. Memory: 0.27 GB for the teacher in bfloat16, 0.55 GB for the student with Adam's moments and
gradients. It fits on 2 CPU cores with 8 GB, for trying it out. On one GPU or TPU chip, raise
train.batch_size and set --precision.compute bfloat16.
"""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import Distillation
from bigmodel_jax.optim import OptimConfig

TEACHER = "runs/smollm2-135m-instruct"


def get_config() -> Config:
    teacher = PRESETS["smollm2-135m"]
    return Config(
        model=dataclasses.replace(
            teacher, num_layers=10, embed_dim=384, num_heads=6, num_kv_heads=2, mlp_dim=1024, depth_scaled_init=True
        ),
        objective=Distillation(
            teacher=TEACHER,
            teacher_model=teacher,  # None would read it from the folder; given here, the config needs no folder
            kind="forward_kl",
            alpha=0.9,  # weight of the teacher's distribution; the rest is the text's own loss
            student_layers=(4, 9),
            teacher_layers=(14, 29),
            hidden_weight=0.5,
        ),
        data=ChatData(
            source=TableFiles(train="data/train.jsonl", validation="data/validation.jsonl"),
            tokenizer_path=f"{TEACHER}/tokenizer.json",
            template_path=f"{TEACHER}/chat_template.jinja",
            seq_len=256,
        ),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_share=0.05, final_lr_ratio=0.1),
        train=TrainConfig(epochs=1, batch_size=4),
        eval=EvalConfig(batch_size=4),
    )
