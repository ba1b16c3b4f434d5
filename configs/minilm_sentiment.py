"""all-MiniLM-L6-v2 (BERT, 23 M parameters) fine-tuned to classify your own texts, `text<TAB>label`
lines.

First run `uv run launch.py import minilm-l6`. benchmarks/minilm.py trains it on film-review
snippets; docs/results.md has the figure.
"""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data.text.subword_classification import SubwordClassificationData
from bigmodel_jax.models import Compute
from bigmodel_jax.models.bert import PRESETS
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig

RUN = "runs/minilm-l6"


def get_config() -> Config:
    return Config(
        model=dataclasses.replace(
            PRESETS["minilm-l6"], head="classification", num_classes=2, dropout=0.1, compute=Compute(unroll=True)
        ),
        objective=Classification(),
        data=SubwordClassificationData(tokenizer_path=f"{RUN}/tokenizer.json", seq_len=40),
        optim=OptimConfig(lr=1e-4, warmup_steps=24, weight_decay=0.01, final_lr_ratio=0.0),
        train=TrainConfig(steps=240, batch_size=32, init_from=RUN),
        eval=EvalConfig(batch_size=128),
    )
