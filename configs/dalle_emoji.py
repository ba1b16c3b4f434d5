"""A small DALL-E (3.0 million parameters) that draws emoji of 32 x 32 pixels from names, code after
code.

It learns from 1,713 emoji. First run `launch.py train configs/dvae_emoji.py`, whose codes it
writes, and `launch.py train configs/clip_emoji.py`, which chooses one of 8 candidates for each
name. This run takes half an hour on 2 cores. benchmarks/dalle_emoji.py measures the pictures of
held-out names: another CLIP has the right name among its first five for 32.6% of the chosen
pictures, for 14.7% of the first candidates, and for 28.9% of the real pictures (one seed).

A sequence has 16 tokens of text and 64 codes. Positions are learned, since a code's position is its
place in the picture. The vocabulary is that of both: 512 codes and 1,024 tokens of text.
"""

from bigmodel_jax.config import Config, EvalConfig, SampleConfig, TrainConfig
from bigmodel_jax.data import ImageTextData
from bigmodel_jax.models import Compute, GPT2Config
from bigmodel_jax.objectives import TextThenImage
from bigmodel_jax.optim import OptimConfig
from configs import dvae_emoji


def get_config() -> Config:
    # The autoencoder's model is given here, so that the config needs no folder to be read.
    autoencoder = dvae_emoji.get_config().model
    return Config(
        model=GPT2Config(
            vocab_size=512 + 1024,
            num_layers=6,
            embed_dim=192,
            num_heads=6,
            max_seq_len=16 + 64,
            dropout=0.1,
            compute=Compute(unroll=True),
        ),
        objective=TextThenImage(
            autoencoder="runs/dvae_emoji", autoencoder_model=autoencoder, judge="runs/clip_emoji", candidates=8
        ),
        data=ImageTextData(image_size=32),
        optim=OptimConfig(lr=1e-3, warmup_steps=100, weight_decay=0.1, final_lr_ratio=0.02, ema_decay=0.99),
        train=TrainConfig(steps=1500, batch_size=64),  # 56 epochs
        eval=EvalConfig(every=200, sample=SampleConfig(temperature=1.0)),
    )
