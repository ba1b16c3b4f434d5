"""GRPO of Llama 3 8B with LoRA on prompts with answers that can be checked, for eight TPU v5e
chips.

First run `launch.py import Meta-Llama-3-8B-Instruct --run_dir runs/llama3_8b_instruct`. Records are
{"prompt", "answer"}. `launch.py plan configs/llama3_8b_grpo.py --topology v5e:2x4` shows its needs
(docs/plan.md). It has not been run on such a machine.
"""

import re

from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, TrainConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.objectives import PolicyGradient
from bigmodel_jax.optim import OptimConfig
from configs import llama3_8b_dpo

RUN = llama3_8b_dpo.RUN


def last_number(prompt: str, response: str, record: dict) -> float:
    """1 if the last number in the response is the record's answer, else 0."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", response)
    return float(bool(found) and found[-1].replace(",", "") == str(record["answer"]))


def get_config() -> Config:
    base = llama3_8b_dpo.get_config()
    return Config(
        model=base.model,
        objective=PolicyGradient(reward=last_number, kl=0.001, reference="adapters_off"),
        data=PromptData(
            source=TableFiles(train="data/prompts_train.jsonl", validation="data/prompts_validation.jsonl"),
            tokenizer_path=f"{RUN}/tokenizer.json",
            template_path=f"{RUN}/chat_template.jinja",
            max_prompt=512,
            max_tokens=1536,
            group=8,
            slots=64,
        ),
        optim=OptimConfig(lr=1e-5, warmup_steps=10, weight_decay=0.0, final_lr_ratio=1.0),
        parallel=base.parallel,
        precision=base.precision,
        train=TrainConfig(steps=500, batch_size=64, microbatches=4, init_from=RUN),
        eval=EvalConfig(every=50, batch_size=64),
        checkpoint=CheckpointConfig(every=50),
        adapters=base.adapters,
    )
