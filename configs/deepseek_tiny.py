"""The small Llama of lm_tiny as a DeepSeek-V3, for a short run.

It has latent attention, one shared expert and two of eight small experts per token, and a module
that predicts the token after the next. Cost: about 105 CPU seconds, so about a minute on 2 CPU
cores. Reaches 2.31 bits per byte on the addresses after 2000.
"""

from bigmodel_jax.config import Config
from bigmodel_jax.models import DeepseekConfig
from configs import lm_tiny


def get_config() -> Config:
    return lm_tiny.short(
        DeepseekConfig(
            vocab_size=lm_tiny.VOCAB_SIZE,
            num_layers=2,
            num_dense_layers=1,
            embed_dim=192,
            num_heads=4,
            q_lora_rank=96,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=48,
            mlp_dim=512,
            expert_dim=96,
            num_experts=8,
            experts_per_token=2,
            num_groups=4,
            groups_per_token=2,
            bias_update_rate=0.01,  # 60 steps are too few for small update rates
            num_mtp_layers=1,
            max_seq_len=256,
            init_std=0.06,  # near 1/sqrt(embed_dim), as in lm_tiny
        ),
        steps=60,
    )
