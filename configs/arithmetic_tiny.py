"""A small Llama learns sums of two numbers from examples; the run stops long before it masters
them.

Cost: about a minute on 2 CPU cores. It answers about a third of the held-out sums.
configs/grpo_arithmetic.py raises this share by rewards alone (docs/results.md).
"""

import numpy as np

from bigmodel_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.data import Arrays, TextData, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

DIGITS = 2  # digits of each number
HELD_OUT = 512  # sums that are in no training record


def sums() -> dict[str, dict[str, list[str]]]:
    """Every sum once, in a fixed random order, with columns for prompt, answer, and both as one
    text."""
    numbers = 10**DIGITS
    order = np.random.default_rng(0).permutation(numbers**2)
    pairs = [divmod(int(i), numbers) for i in order]
    prompts, answers = [f"{a}+{b}=" for a, b in pairs], [str(a + b) for a, b in pairs]
    columns = {"prompt": prompts, "answer": answers, "text": [p + a for p, a in zip(prompts, answers, strict=True)]}
    parts = {"validation": slice(HELD_OUT), "train": slice(HELD_OUT, None)}
    return {split: {name: column[part] for name, column in columns.items()} for split, part in parts.items()}


def get_config() -> Config:
    return Config(
        model=LlamaConfig(
            vocab_size=257,  # the bytes and the separator
            num_layers=3,
            embed_dim=96,
            num_heads=4,
            num_kv_heads=4,
            head_dim=24,
            mlp_dim=256,
            max_seq_len=32,
            init_std=0.1,
        ),
        objective=NextToken(),
        data=TextData(source=Arrays(sums), tokenizer=TokenizerConfig(kind="bytes"), seq_len=12, packing="none"),
        optim=OptimConfig(lr=2e-3, warmup_steps=50, final_lr_ratio=1.0),
        train=TrainConfig(steps=400, batch_size=64, log_every=50),
        eval=EvalConfig(batch_size=128, baselines=False, sample=SampleConfig(prompt="17+25=", max_tokens=5)),
    )
