"""Granite: a Llama with multipliers of its embeddings, its attention, its residuals and its logits (Granite 3.0 Language
Models, 2024), which carry a recipe from a small width to a large one (arXiv:2408.13359)."""

import dataclasses

from bigmodel_jax.core.ranges import Count, Depth, Positive
from bigmodel_jax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class GraniteConfig(LlamaConfig):
    """Defaults: Granite 3.3 8B."""

    vocab_size: Count = 49_159
    num_layers: Depth = 40
    num_kv_heads: Count = 8
    mlp_dim: Count = 12_800
    max_seq_len: Count = 131_072
    rope_theta: Positive = 10_000_000.0
    tied_embeddings: bool = True
    embedding_multiplier: Positive = 12.0
    attention_multiplier: Positive = 0.0078125  # of the logits of attention, in place of 1/sqrt(head_dim)
    residual_multiplier: Positive = 0.22  # of what each half of a block adds
    logits_scaling: Positive = 16.0  # what the logits are divided by

    def no_mup(self, depth):
        return "has multipliers of its own"

    @classmethod
    def tiny(cls) -> "GraniteConfig":
        """With multipliers that are mild, as its width is."""
        return dataclasses.replace(
            super().tiny(), embedding_multiplier=2.0, attention_multiplier=0.3, logits_scaling=0.5
        )


PRESETS = {
    "granite-3.3-2b": GraniteConfig(
        embed_dim=2048, head_dim=64, mlp_dim=8192, attention_multiplier=0.015625, logits_scaling=8.0
    ),
    "granite-3.3-8b": GraniteConfig(),
}
