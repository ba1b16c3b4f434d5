"""A small BERT pretrained as BERT was: hidden tokens, and whether the second of two spans follows the first."""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data import SentencePairData, Tfds, TokenizerConfig
from bigmodel_jax.models import BertConfig
from bigmodel_jax.objectives import BertPretraining
from bigmodel_jax.optim import OptimConfig

VOCAB_SIZE = 4096
# Every tenth hundredth of the addresses is held out, so that both parts are of all times.
TRAIN = "+".join(f"train[{i}%:{i + 9}%]" for i in range(0, 100, 10))
HELD_OUT = "+".join(f"train[{i + 9}%:{i + 10}%]" for i in range(0, 100, 10))


def get_config() -> Config:
    return Config(
        model=BertConfig(
            vocab_size=VOCAB_SIZE,
            num_layers=2,
            embed_dim=128,
            num_heads=4,
            mlp_dim=256,
            max_seq_len=64,
            head="pretraining",
            init_std=0.09,  # 1/sqrt(embed_dim): at this width the usual 0.02 attends to everything alike for long
        ),
        objective=BertPretraining(),
        data=SentencePairData(
            source=Tfds("sotu", train_split=TRAIN, eval_split=HELD_OUT),
            tokenizer=TokenizerConfig(kind="wordpiece", vocab_size=VOCAB_SIZE),
            seq_len=64,
        ),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.98), warmup_steps=50, weight_decay=0.01, final_lr_ratio=0.0),
        train=TrainConfig(steps=300, batch_size=32),
        eval=EvalConfig(batch_size=64),
    )
