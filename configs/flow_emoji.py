"""A small MM-DiT (8.7 million parameters) that draws emoji of 32 x 32 pixels from names, by
rectified flow.

It learns from 1,713 emoji, and a text tower is trained along. A step takes about 2 seconds on 2
quiet cores, so the whole run takes hours. benchmarks/flow_emoji.py measures it, and a run of
clip_emoji.py is the judge.
"""

from bigmodel_jax.config import Config, EvalConfig, ImageSampleConfig, TrainConfig
from bigmodel_jax.data import ImageTextData
from bigmodel_jax.models import Compute, MMDiTTextConfig
from bigmodel_jax.models.clip import TextTower
from bigmodel_jax.objectives import FlowMatching
from bigmodel_jax.optim import OptimConfig

WIDTH = 192


def get_config() -> Config:
    return Config(
        model=MMDiTTextConfig(
            image_shape=(32, 32, 3),
            patch_size=4,
            num_layers=6,
            embed_dim=WIDTH,
            num_heads=6,
            text_dim=WIDTH,
            pooled_dim=WIDTH,
            qk_norm=True,
            position_grid=8,
            text=TextTower(
                vocab_size=1024,
                max_seq_len=16,
                num_layers=2,
                embed_dim=WIDTH,
                num_heads=6,
                mlp_dim=3 * WIDTH,
                compute=Compute(unroll=True),
            ),
            compute=Compute(unroll=True),
        ),
        objective=FlowMatching(),
        data=ImageTextData(image_size=32),
        optim=OptimConfig(lr=1e-3, warmup_steps=200, weight_decay=0.01, final_lr_ratio=0.02, ema_decay=0.999),
        train=TrainConfig(steps=6000, batch_size=64),  # 224 epochs
        eval=EvalConfig(every=1000, images=ImageSampleConfig(num=48, steps=20, guidance=3.0)),
    )
