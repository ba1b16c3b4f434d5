from bigmodel_jax.config import CheckpointConfig, Config, EvalConfig, ReportConfig, SampleConfig, TrainConfig
from bigmodel_jax.data import TextData, TextFiles, TokenizerConfig
from bigmodel_jax.models import LlamaConfig
from bigmodel_jax.objectives import NextToken
from bigmodel_jax.optim import OptimConfig


def get_config():
    return Config(
        model=LlamaConfig(
            vocab_size=257,
            num_layers=1,
            embed_dim=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            mlp_dim=32,
            max_seq_len=32,
        ),
        objective=NextToken(),
        data=TextData(
            source=TextFiles(train="train.txt", validation="validation.txt"),
            tokenizer=TokenizerConfig("bytes"),
            seq_len=16,
            cache_dir="cache",
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=2, schedule="constant", ema_decay=0.9),
        train=TrainConfig(steps=8, batch_size=8, log_every=1),
        eval=EvalConfig(sample=SampleConfig(prompt="the ", max_tokens=4)),
        checkpoint=CheckpointConfig(every=4, keep=1),
        report=ReportConfig(tensorboard=False),
    )
