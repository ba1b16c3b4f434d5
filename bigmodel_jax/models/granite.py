"""Granite: a Llama whose embeddings, attention, residuals and logits have multipliers.

IBM, "Granite 3.0 Language Models", 2024. The multipliers transfer hyperparameters from a small
width to a large one (arXiv:2408.13359).
"""

import dataclasses

from bigmodel_jax.core.ranges import Count, Depth, Positive
from bigmodel_jax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class GraniteConfig(LlamaConfig):
    """Granite 3 (IBM, 2024); defaults: Granite 3.3 8B.

    The reference implementation is transformers' `GraniteForCausalLM`; other fields:
    `LlamaConfig`'s.
    """

    vocab_size: Count = 49_159
    num_layers: Depth = 40
    num_kv_heads: Count = 8
    mlp_dim: Count = 12_800
    max_seq_len: Count = 131_072
    rope_theta: Positive = 10_000_000.0
    tied_embeddings: bool = True
    embedding_multiplier: Positive = 12.0  # factor of the embeddings
    attention_multiplier: Positive = 0.0078125  # factor of attention's logits, in place of 1/sqrt(head_dim)
    residual_multiplier: Positive = 0.22  # factor of what each half of a block adds to the residual
    logits_scaling: Positive = 16.0  # divisor of the logits

    def no_mup(self, depth):
        return "has multipliers of its own"

    @classmethod
    def tiny(cls) -> "GraniteConfig":
        """The tiny model of the family. Its multipliers are milder, because it is narrow."""
        return dataclasses.replace(
            super().tiny(), embedding_multiplier=2.0, attention_multiplier=0.3, logits_scaling=0.5
        )


PRESETS = {
    "granite-3.3-2b": GraniteConfig(
        embed_dim=2048, head_dim=64, mlp_dim=8192, attention_multiplier=0.015625, logits_scaling=8.0
    ),
    "granite-3.3-8b": GraniteConfig(),
}
