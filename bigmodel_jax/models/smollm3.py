"""SmolLM3: a Llama of which every n-th layer turns no queries and keys by their positions (NoPE: arXiv:2501.18795)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.ranges import Count, Depth, NonNegative, Positive
from bigmodel_jax.models import llama
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.llama import LlamaConfig


@dataclasses.dataclass(frozen=True)
class SmolLM3Config(LlamaConfig):
    """Defaults: the 3B model."""

    vocab_size: Count = 128_256
    num_layers: Depth = 36
    embed_dim: Count = 2048
    num_heads: Count = 16
    num_kv_heads: Count = 4
    max_seq_len: Count = 65_536
    rope_theta: Positive = 5_000_000.0
    norm_eps: NonNegative = 1e-6
    tied_embeddings: bool = True
    LAYERS_ALIKE: ClassVar[bool] = False

    nope_every: Count = 4  # one layer in so many, the last of them, has no rotary positions

    def make(self) -> Model:
        return llama.model(self, embed=embed, block=block)

    @classmethod
    def tiny(cls) -> "SmolLM3Config":
        return dataclasses.replace(super().tiny(), nope_every=2)


def is_turned(cfg: SmolLM3Config) -> np.ndarray:
    """Which layers have rotary positions; (L,) bool."""
    return (np.arange(cfg.num_layers) + 1) % cfg.nope_every != 0


def embed(cfg: SmolLM3Config, *args):
    x_BTD, _, shared = llama.embed(cfg, *args)
    return x_BTD, is_turned(cfg), shared


def block(cfg: SmolLM3Config, p, x_BTD, xs, q_where, k_where, angles, index, *, train):
    turned, (cos, sin) = xs[1], angles
    angles = jnp.where(turned, cos, 1.0), jnp.where(turned, sin, 0.0)  # a turn by nothing, where there is none
    return llama.block(cfg, p, x_BTD, xs, q_where, k_where, angles, index, train=train)


PRESETS = {"smollm3-3b": SmolLM3Config()}
