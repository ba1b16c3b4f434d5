"""Qwen3-MoE: a Qwen3 with many small experts in every layer, eight per token (arXiv:2505.09388)."""

import dataclasses

from bigmodel_jax.core.ranges import Count, Depth, NonNegative
from bigmodel_jax.models.mixtral import MixtralConfig


@dataclasses.dataclass(frozen=True)
class Qwen3MoeConfig(MixtralConfig):
    """Qwen3's mixture of experts (arXiv:2505.09388); defaults: Qwen3-30B-A3B.

    The reference implementation is transformers' `Qwen3MoeForCausalLM`. The fields are
    `MixtralConfig`'s.
    """

    vocab_size: Count = 151_936
    num_layers: Depth = 48
    embed_dim: Count = 2048
    num_kv_heads: Count = 4
    mlp_dim: Count = 768
    max_seq_len: Count = 40_960
    qk_norm: bool = True
    norm_eps: NonNegative = 1e-6
    num_experts: Count = 128
    experts_per_token: Count = 8
    load_balancing_loss: NonNegative = 0.001


PRESETS = {
    "qwen3-30b-a3b": Qwen3MoeConfig(),
    "qwen3-235b-a22b": Qwen3MoeConfig(num_layers=94, embed_dim=4096, num_heads=64, mlp_dim=1536),
}
