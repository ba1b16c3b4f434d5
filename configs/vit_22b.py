"""A vision transformer of ViT-22B's size (arXiv:2302.05442) on ImageNet, for 256 TPU v5p chips.

It has 48 layers, width 6144, 48 heads and MLP width 24576, on images of 224 x 224. Attention and
MLP run one after the other, as in ViT; ViT-22B runs them in parallel. `launch.py plan
configs/vit_22b.py --topology v5p:4x8x8` shows its needs and cost (docs/plan.md).
"""

from bigmodel_jax.config import CheckpointConfig, Config, TrainConfig
from bigmodel_jax.core.precision import Policy
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.data import ImageData, Tfds
from bigmodel_jax.data.images.augment import Flip, RandomResizedCrop
from bigmodel_jax.models import Compute
from bigmodel_jax.models.vit import ViTConfig
from bigmodel_jax.objectives import Classification
from bigmodel_jax.optim import OptimConfig

NUM_CLASSES = 1000


def get_config() -> Config:
    return Config(
        model=ViTConfig(
            num_classes=NUM_CLASSES,
            patch_size=14,
            num_layers=48,
            embed_dim=6144,
            num_heads=48,
            mlp_dim=24_576,
            norm_eps=1e-6,
            compute=Compute(remat="full"),
        ),
        objective=Classification(),
        data=ImageData(
            source=Tfds("imagenet2012"),
            num_classes=NUM_CLASSES,
            image_size=224,  # images are decoded from files, batch by batch
            augment=(RandomResizedCrop(), Flip()),
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=10_000),
        parallel=ParallelConfig(data=1, fsdp=-1),
        precision=Policy(compute="bfloat16"),
        train=TrainConfig(steps=177_000, batch_size=4096),
        checkpoint=CheckpointConfig(every=1000),
    )
