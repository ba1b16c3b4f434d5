"""SmolLM2-135M-Instruct with LoRA on your own conversations: data/train.jsonl,
data/validation.jsonl.

First run `uv run --extra pretrained launch.py import smollm2-135m-instruct`; docs/finetune.md
continues from there. Every matrix product of the layers gets an adapter of rank 16: 4.9 million
trained parameters beside 134.5 million frozen ones.

Cost: a step of 4 rows of 256 tokens is 0.55 TFLOP, two thirds of sft_smollm2.py. Memory: 0.54 GB
for weights, 0.08 GB for adapters, gradients and Adam's moments, and about 2 GB for the step. A
checkpoint is 59 MB. On two CPU cores, `--model.compute.unroll true` makes a step 13 % shorter, and
compiling a minute longer.

`--adapters.rank_stabilised true` is rsLoRA, and `--adapters.dora true` is DoRA. LoRA+
(arXiv:2402.12354), where b learns 16 times as fast as a, is a group among the fields of `optim`:
`groups=(Group("adapters/.*/b", lr=8e-3),)`.
"""

import dataclasses

from bigmodel_jax.config import Config
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.optim import OptimConfig
from configs import sft_smollm2


def get_config() -> Config:
    return dataclasses.replace(
        sft_smollm2.get_config(),
        adapters=Lora(targets=r"layers/.*", rank=16, alpha=32.0),
        # Adapters start at zero and are small, so the learning rate is ten times that of full
        # fine-tuning.
        optim=OptimConfig(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
    )
