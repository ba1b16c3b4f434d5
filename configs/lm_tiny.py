"""A small Llama on two centuries of presidential addresses."""

from bigmodel_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.data.text import TextData
from bigmodel_jax.data.tokenizers import TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=LlamaConfig(
            vocab_size=4096,
            num_layers=4,
            embed_dim=192,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
            mlp_dim=512,
            max_seq_len=256,
            unroll=True,
        ),
        objective=NextToken(),
        data=TextData(tokenizer=TokenizerConfig(vocab_size=4096), seq_len=256),
        optim=OptimConfig(lr=5e-3, warmup_steps=50, weight_decay=0.1, final_lr_ratio=0.02),
        train=TrainConfig(steps=400, batch_size=8),
        eval=EvalConfig(batch_size=32, sample=SampleConfig(prompt="Fellow citizens,", max_tokens=120)),
    )
