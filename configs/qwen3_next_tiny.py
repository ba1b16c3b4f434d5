"""The small Llama of lm_tiny as a Qwen3-Next: three layers of Gated DeltaNet, one of attention, and
two of eight small experts per token; a short run.
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import Qwen3NextConfig
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(
        Qwen3NextConfig(
            vocab_size=lm_tiny.VOCAB_SIZE,
            num_layers=4,
            embed_dim=192,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
            rotary_dim=16,
            num_key_heads=2,
            num_value_heads=4,
            key_dim=48,
            value_dim=48,
            mlp_dim=96,
            shared_dim=96,
            num_experts=8,
            experts_per_token=2,
            max_seq_len=256,
            rope_theta=10_000.0,
            init_std=0.06,  # near 1/sqrt(embed_dim), as in lm_tiny
        ),
        steps=60,
    )
