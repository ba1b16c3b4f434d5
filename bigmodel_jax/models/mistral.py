"""Mistral: a Llama with sliding-window attention (arXiv:2310.06825).

Later versions of the published model are of this family and have no window.
"""

import dataclasses

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """Mistral (Jiang et al., arXiv:2310.06825); defaults: the 7B model, version 0.1.

    The reference implementation is transformers' `MistralForCausalLM`. The fields are
    `LlamaConfig`'s.
    """

    num_kv_heads: Count = 8
    mlp_dim: Count = 14_336
    max_seq_len: Count = 32_768
    window: CountOrZero = 4096

    @classmethod
    def tiny(cls) -> "MistralConfig":
        return dataclasses.replace(super().tiny(), window=5)


MISTRAL_7B_V02 = MistralConfig(rope_theta=1_000_000.0, window=0)
PRESETS = {
    "mistral-7b-v0.1": MistralConfig(),
    "mistral-7b-v0.2": MISTRAL_7B_V02,
    "mistral-7b-v0.3": dataclasses.replace(MISTRAL_7B_V02, vocab_size=32_768),
}
