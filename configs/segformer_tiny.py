"""A small SegFormer on the scenes of segment_digits.py; its logits have half of the image's
resolution.

It takes 300 steps on 2 cores. No complete run has been measured.
"""

import dataclasses

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.models import SegformerConfig
from bigmodel_jax.optim import OptimConfig
from configs import segment_digits


def get_config() -> Config:
    return dataclasses.replace(
        segment_digits.get_config(),
        model=SegformerConfig(
            image_shape=(48, 48, 1),
            num_classes=11,
            depths=(1, 1, 2),
            channels=(32, 64, 96),
            num_heads=(1, 2, 4),
            mlp_ratios=(2, 2, 2),
            reductions=(4, 2, 1),
            patch_sizes=(3, 3, 3),
            strides=(2, 2, 2),
            decoder_dim=64,
            dropout=0.0,
            init_std=0.08,
        ),
        optim=OptimConfig(lr=2e-3, warmup_steps=50, weight_decay=0.05, final_lr_ratio=0.0),
        train=TrainConfig(steps=300, batch_size=32),
        eval=EvalConfig(),
    )
