"""Qwen 2, 2.5 and 3: a Llama with biases or norms on queries and keys.

Qwen2 and Qwen2.5 (arXiv:2407.10671, 2412.15115) have biases on queries, keys and values. Qwen3
(arXiv:2505.09388) has an RMSNorm on each head's queries and keys instead.
"""

import dataclasses

from bigmodel_jax.core.ranges import Count, Depth, NonNegative, Positive
from bigmodel_jax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class Qwen2Config(LlamaConfig):
    """Qwen2 and Qwen2.5 (arXiv:2407.10671, 2412.15115); defaults: Qwen2.5-7B.

    The reference implementation is transformers' `Qwen2ForCausalLM`. The fields are
    `LlamaConfig`'s.
    """

    vocab_size: Count = 152_064
    num_layers: Depth = 28
    embed_dim: Count = 3584
    num_heads: Count = 28
    num_kv_heads: Count = 4
    mlp_dim: Count = 18_944
    max_seq_len: Count = 131_072
    rope_theta: Positive = 1_000_000.0
    qkv_bias: bool = True
    norm_eps: NonNegative = 1e-6


@dataclasses.dataclass(frozen=True)
class Qwen3Config(LlamaConfig):
    """Qwen3 (arXiv:2505.09388); defaults: Qwen3-8B.

    The reference implementation is transformers' `Qwen3ForCausalLM`. The fields are
    `LlamaConfig`'s.
    """

    vocab_size: Count = 151_936
    num_layers: Depth = 36
    num_kv_heads: Count = 8
    mlp_dim: Count = 12_288
    max_seq_len: Count = 40_960
    rope_theta: Positive = 1_000_000.0
    qk_norm: bool = True
    norm_eps: NonNegative = 1e-6


SMALL = {"vocab_size": 151_936, "max_seq_len": 32_768, "tied_embeddings": True}
LARGE = {"embed_dim": 5120, "num_heads": 40, "num_kv_heads": 8, "norm_eps": 1e-5}
PRESETS = {
    "qwen2.5-0.5b": Qwen2Config(
        **SMALL, num_layers=24, embed_dim=896, num_heads=14, num_kv_heads=2, head_dim=64, mlp_dim=4864
    ),
    "qwen2.5-1.5b": Qwen2Config(
        **SMALL | {"max_seq_len": 131_072}, embed_dim=1536, num_heads=12, num_kv_heads=2, mlp_dim=8960
    ),
    "qwen2.5-3b": Qwen2Config(**SMALL, num_layers=36, embed_dim=2048, num_heads=16, num_kv_heads=2, mlp_dim=11_008),
    "qwen2.5-7b": Qwen2Config(),
    "qwen2.5-14b": Qwen2Config(**LARGE, num_layers=48, mlp_dim=13_824),
    "qwen2.5-32b": Qwen2Config(**LARGE, num_layers=64, mlp_dim=27_648),
    "qwen2.5-72b": Qwen2Config(**LARGE | {"embed_dim": 8192, "num_heads": 64}, num_layers=80, mlp_dim=29_568),
    "qwen3-0.6b": Qwen3Config(num_layers=28, embed_dim=1024, num_heads=16, mlp_dim=3072, tied_embeddings=True),
    "qwen3-1.7b": Qwen3Config(num_layers=28, embed_dim=2048, num_heads=16, mlp_dim=6144, tied_embeddings=True),
    "qwen3-4b": Qwen3Config(embed_dim=2560, mlp_dim=9728, tied_embeddings=True),
    "qwen3-8b": Qwen3Config(),
    "qwen3-14b": Qwen3Config(num_layers=40, embed_dim=5120, num_heads=40, mlp_dim=17_408),
    "qwen3-32b": Qwen3Config(num_layers=64, embed_dim=5120, num_heads=64, mlp_dim=25_600),
}
