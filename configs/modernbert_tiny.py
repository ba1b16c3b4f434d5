"""A ModernBERT of bert_tiny's size, on rows four times as long.

Its first and third layer see the whole row, and the others 8 bytes on each side. Cost: about a
minute on 2 CPU cores. Its accuracy has not been measured.
"""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.models import ModernBertConfig
from configs import bert_tiny


def get_config() -> Config:
    base = bert_tiny.get_config()
    model = ModernBertConfig(
        vocab_size=258,
        num_layers=4,
        embed_dim=64,
        num_heads=4,
        mlp_dim=128,
        max_seq_len=64,
        window=9,
        global_every=2,
        init_std=base.model.init_std,
    )
    return dataclasses.replace(
        base,
        model=model,
        data=dataclasses.replace(base.data, seq_len=64),
        train=TrainConfig(steps=200, batch_size=32),
        eval=EvalConfig(batch_size=256),
    )
