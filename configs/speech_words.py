"""A conformer hears 32 words."""

from bigmodel_jax.config import Config, EvalConfig, TrainConfig
from bigmodel_jax.data.audio.speech import SpeechData
from bigmodel_jax.models.compute import StackCompute
from bigmodel_jax.models.conformer import ConformerConfig
from bigmodel_jax.objectives import CTC
from bigmodel_jax.optim import OptimConfig


def get_config() -> Config:
    return Config(
        model=ConformerConfig(
            vocab_size=29,
            subsampling=4,
            subsampling_dim=32,
            num_layers=4,
            embed_dim=128,
            num_heads=4,
            mlp_dim=512,
            conv_width=15,
            scale_input=False,
            init_std=0.08,
            dropout=0.1,
            compute=StackCompute(unroll=True),
        ),
        objective=CTC(),
        data=SpeechData(max_seconds=2.6, max_labels=32),
        optim=OptimConfig(lr=1e-3, warmup_steps=200, weight_decay=0.05, final_lr_ratio=0.01),
        train=TrainConfig(steps=2000, batch_size=32),
        eval=EvalConfig(every=250),
    )
