"""GLM-4: a Llama with a norm before and after each half of a block, and partial rotary positions.

Positions rotate a part of each head's dimensions, in pairs of neighbours (arXiv:2406.12793; the
models of April 2025).
"""

import dataclasses
from typing import ClassVar

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Count, Depth
from bigmodel_jax.models import llama
from bigmodel_jax.models.base import BRANCH_NORM, Model
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.sizes import AtMost, Multiple
from bigmodel_jax.nn import norm


@dataclasses.dataclass(frozen=True)
class Glm4Config(LlamaConfig):
    """GLM-4 (arXiv:2406.12793); defaults: GLM-4-9B-0414.

    The reference implementation is transformers' `Glm4ForCausalLM`. Other fields are
    `LlamaConfig`'s.
    """

    vocab_size: Count = 151_552
    num_layers: Depth = 40
    num_kv_heads: Count = 2
    mlp_dim: Count = 13_696
    max_seq_len: Count = 32_768
    rotary_dim: Count = 64  # number of a head's first dimensions that rotary positions rotate

    SIZES: ClassVar[tuple] = (
        *LlamaConfig.SIZES,
        AtMost("rotary_dim", "head_dim"),
        Multiple("rotary_dim", 2, "rotary positions turn pairs of dimensions"),
    )
    rope_interleaved: ClassVar[bool] = True

    def make(self) -> Model:
        return llama.model(self, block_spec)

    def no_mup(self, depth):
        return BRANCH_NORM if depth else ""

    @classmethod
    def tiny(cls) -> "Glm4Config":
        return dataclasses.replace(super().tiny(), rotary_dim=4)


def block_spec(cfg: Glm4Config) -> params.Tree:
    """Llama's layer with two more RMSNorms (D,), one after attention and one after the MLP."""
    after = {"attn_post_norm": norm.rms_spec(cfg.embed_dim), "mlp_post_norm": norm.rms_spec(cfg.embed_dim)}
    return llama.block_spec(cfg) | after


PRESETS = {
    "glm-4-9b": Glm4Config(),
    "glm-4-32b": Glm4Config(num_layers=61, embed_dim=6144, num_heads=48, num_kv_heads=8, mlp_dim=23_040),
}
