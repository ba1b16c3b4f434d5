"""A small Llama on two centuries of presidential addresses."""

from bigmodel_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.data import TextData, Tfds, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=LlamaConfig(
            vocab_size=8192,
            num_layers=2,
            embed_dim=192,
            num_heads=3,
            num_kv_heads=1,
            head_dim=64,
            mlp_dim=512,
            max_seq_len=256,
            init_std=0.06,
        ),
        objective=NextToken(),
        data=TextData(
            source=Tfds("sotu", train_split="train[60%:]"), tokenizer=TokenizerConfig(vocab_size=8192), seq_len=128
        ),
        optim=OptimConfig(lr=5e-3, betas=(0.9, 0.98), warmup_steps=100, weight_decay=0.1, final_lr_ratio=0.0),
        train=TrainConfig(steps=1900, batch_size=4),
        eval=EvalConfig(batch_size=32, sample=SampleConfig(prompt="My fellow Americans,", max_tokens=100)),
    )
