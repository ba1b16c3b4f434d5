"""A ViT whose patches predict the logits of their own pixels, on the scenes of segment_digits.py.

It takes 16 minutes on 2 cores. The mean intersection over union on 500 held-out scenes is 0.772;
the goal of 0.85 is not met (one seed). After 900 steps it is 0.46, and AdamW reaches 0.17 in 750.
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
        optim=OptimConfig(name="muon", lr=1e-2, warmup_steps=100, weight_decay=0.05, final_lr_ratio=0.0),
        train=TrainConfig(steps=3600, batch_size=32),
    )
