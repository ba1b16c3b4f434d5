"""SmolLM3: a Llama in which every n-th layer has no rotary positions (NoPE, arXiv:2501.18795)."""

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
    """SmolLM3 (Hugging Face, 2025); defaults: the 3B model.

    The reference implementation is transformers' `SmolLM3ForCausalLM`; other fields:
    `LlamaConfig`'s.
    """

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

    nope_every: Count = 4  # every n-th layer, counted from 1, has no rotary positions

    def make(self) -> Model:
        return llama.model(self, embed=embed, block=block)

    @classmethod
    def tiny(cls) -> "SmolLM3Config":
        return dataclasses.replace(super().tiny(), nope_every=2)


def is_turned(cfg: SmolLM3Config) -> np.ndarray:
    """Returns (L,) bool: which layers have rotary positions."""
    return (np.arange(cfg.num_layers) + 1) % cfg.nope_every != 0


def embed(cfg: SmolLM3Config, *args):
    """As `llama.embed`. The layers also get (L,) bool, which of them have rotary positions."""
    x_BTD, _, shared = llama.embed(cfg, *args)
    return x_BTD, is_turned(cfg), shared


def block(cfg: SmolLM3Config, p, x_BTD, xs, q_where, k_where, angles, index, *, train):
    """As `llama.block`; a layer without rotary positions rotates by an angle of 0."""
    turned, (cos, sin) = xs[1], angles
    # cos 1 and sin 0 rotate by nothing, so that all layers share one program.
    angles = jnp.where(turned, cos, 1.0), jnp.where(turned, sin, 0.0)
    return llama.block(cfg, p, x_BTD, xs, q_where, k_where, angles, index, train=train)


PRESETS = {"smollm3-3b": SmolLM3Config()}
