"""A small T5 v1.0 on the presidential addresses, pretrained as published: it restores removed
spans.

Cost: about 80 CPU seconds with its evaluation, under a minute on 2 free CPU cores. Reaches 3.62
bits per byte of the spans removed from the addresses after 2000; a prediction of each token by its
frequency gives 4.06.
"""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data import SpanCorruptionData, Tfds, TokenizerConfig
from bigmodel_jax.models import T5Config
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig

VOCAB_SIZE = 1024
SENTINELS = 6  # sentinel tokens for a row of 128 tokens, 15 % of which are removed in spans of 3


def get_config() -> Config:
    return Config(
        model=T5Config(
            vocab_size=VOCAB_SIZE,
            num_layers=2,
            num_decoder_layers=2,
            embed_dim=128,
            num_heads=4,
            head_dim=32,
            mlp_dim=512,
            max_seq_len=128,
            eos_token_id=0,  # the tokenizer's separator, which both ends and starts a text
        ),
        objective=NextToken(),
        data=SpanCorruptionData(
            source=Tfds("sotu", train_split="train[60%:]"),
            tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE - SENTINELS),
            seq_len=128,
        ),
        optim=OptimConfig(lr=5e-3, betas=(0.9, 0.98), warmup_steps=20, weight_decay=0.0, final_lr_ratio=0.0),
        train=TrainConfig(steps=150, batch_size=16),
        eval=EvalConfig(batch_size=32),
    )
