"""SmolLM2-135M-Instruct fine-tuned by LoRA on conversations of a user's own: data/train.jsonl and data/validation.jsonl.

First `uv run --extra pretrained launch.py import smollm2-135m-instruct`; docs/finetune.md goes on from there. Every product of
the layers gets an adapter of rank 16: 4.9 million trained parameters beside 134.5 million that stay as they are.

Cost: a step of 4 rows of 256 tokens is 0.55 TFLOP, two thirds of that of sft_smollm2.py. Memory: 0.54 GB for the weights,
0.08 GB for adapters, gradients and moments, and about 2 GB for the step. A checkpoint is 59 MB. `--adapters.rank_stabilised true` is rsLoRA, `--adapters.dora true` DoRA; LoRA+ (arXiv:2402.12354), where
b learns 16 times as fast as a, is one group: `groups=(Group("adapters/.*/b", lr=8e-3),)` among the fields of `optim`.
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.models.adapters import Lora
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

RUN = "runs/smollm2-135m-instruct"


def get_config() -> Config:
    return Config(
        model=PRESETS["smollm2-135m"],
        adapters=Lora(targets=r"layers/(attn|mlp)/.*", rank=16, alpha=32.0),
        objective=NextToken(),
        data=ChatData(
            source=TableFiles(train="data/train.jsonl", validation="data/validation.jsonl"),
            tokenizer_path=f"{RUN}/tokenizer.json",
            template_path=f"{RUN}/chat_template.jinja",
            seq_len=256,  # tokens of a row; a longer conversation is left out, and counted
        ),
        optim=OptimConfig(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
        train=TrainConfig(epochs=1, batch_size=4, init_from=RUN),
        eval=EvalConfig(batch_size=4),
    )
