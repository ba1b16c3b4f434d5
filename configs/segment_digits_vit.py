"""A ViT whose patches predict the logits of their own pixels, on the scenes of segment_digits.py.

It takes 4,000 steps on 2 cores. No complete run has been measured.
"""

import dataclasses

from bigmodel_jax.config import Config, TrainConfig
from bigmodel_jax.models import Compute, ViTConfig
from bigmodel_jax.optim import OptimConfig
from configs import segment_digits


def get_config() -> Config:
    return dataclasses.replace(
        segment_digits.get_config(),
        model=ViTConfig(
            image_shape=(48, 48, 1),
            num_classes=11,
            patch_size=4,
            num_layers=4,
            embed_dim=128,
            num_heads=4,
            mlp_dim=384,
            norm_eps=1e-6,
            init_std=0.08,
            head="pixels",
            compute=Compute(unroll=True),
        ),
        optim=OptimConfig(lr=2e-3, warmup_steps=100, weight_decay=0.05, final_lr_ratio=0.0),
        train=TrainConfig(steps=4000, batch_size=32),
    )
