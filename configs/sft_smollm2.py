"""SmolLM2-135M-Instruct fine-tuned on your own conversations: data/train.jsonl,
data/validation.jsonl.

First run `uv run --extra pretrained launch.py import smollm2-135m-instruct`. `uv run
benchmarks/finetune_data.py data` writes files to try it with. Records are messages, ShareGPT's
conversations, or a prompt and its completion (docs/data.md).

Cost: a step of 4 rows of 256 tokens is 0.8 TFLOP. Memory: 2.2 GB for weights, gradients and Adam's
moments in float32, and about 2 GB for the step. It fits on 2 CPU cores with 8 GB, for trying it
out. On one GPU or TPU chip, raise train.batch_size and data.seq_len, and set --precision.compute
bfloat16. On the sums, the loss on the assistant's tokens falls from 0.47 nats to about 0.06 within
15 steps.
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

RUN = "runs/smollm2-135m-instruct"


def get_config() -> Config:
    return Config(
        model=PRESETS["smollm2-135m"],
        objective=NextToken(),
        data=ChatData(
            source=TableFiles(train="data/train.jsonl", validation="data/validation.jsonl"),
            tokenizer_path=f"{RUN}/tokenizer.json",
            template_path=f"{RUN}/chat_template.jinja",
            seq_len=256,  # tokens of a row; longer conversations are left out, and counted
        ),
        optim=OptimConfig(lr=5e-5, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
        train=TrainConfig(epochs=1, batch_size=4, init_from=RUN),
        eval=EvalConfig(batch_size=4),
    )
