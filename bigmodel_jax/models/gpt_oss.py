"""gpt-oss: a mixture of experts with attention sinks (arXiv:2508.10925).

Every second layer has a window. Positions are YaRN's, all projections have biases, and the experts'
SwiGLU is clamped. Shapes as in llama.py and mixtral.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, zeros
from bigmodel_jax.core.ranges import Count, Depth, NonNegative, Positive
from bigmodel_jax.models import llama, mixtral
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.mixtral import MixtralConfig
from bigmodel_jax.nn.experts import moe
from bigmodel_jax.nn.position import RopeScaling


@dataclasses.dataclass(frozen=True)
class GptOssConfig(MixtralConfig):
    """gpt-oss (arXiv:2508.10925); defaults: the 20B model.

    The reference implementation is transformers' `GptOssForCausalLM`. The layers 0, 2, 4, ... have
    the window. In all other layers, a token sees every token before it. Other fields are
    `MixtralConfig`'s.
    """

    vocab_size: Count = 201_088
    num_layers: Depth = 24
    embed_dim: Count = 2880
    num_heads: Count = 64
    head_dim: Count = 64
    mlp_dim: Count = 2880
    max_seq_len: Count = 131_072
    rope_theta: Positive = 150_000.0
    rope_scaling: RopeScaling = RopeScaling("yarn", 32.0, 4096, truncate=False)
    window: Count = 128
    qkv_bias: bool = True
    num_experts: Count = 32
    experts_per_token: Count = 4
    load_balancing_loss: NonNegative = 0.001
    swiglu_alpha: float = 1.702  # alpha in x sigmoid(alpha x), which approximates GELU at 1.702
    swiglu_limit: NonNegative = 7.0  # gates are clipped to at most this, linear parts to -this .. this

    def make(self) -> Model:
        return llama.model(self, block_spec, embed=embed, block=block, losses=mixtral.losses)

    def windows(self) -> tuple[int, ...]:
        return tuple(self.window if local else 0 for local in is_local(self))

    @classmethod
    def tiny(cls) -> "GptOssConfig":
        return dataclasses.replace(super().tiny(), window=4)


def is_local(cfg: GptOssConfig) -> np.ndarray:
    """Returns (L,) bool: which layers have the window."""
    return np.arange(cfg.num_layers) % 2 == 0


def clamped_swiglu(gate: jax.Array, up: jax.Array, *, alpha: float, limit: float) -> jax.Array:
    """gate sigmoid(alpha gate) (up + 1), with gate and up clipped.

    The limit keeps the product in the range of 8-bit floats.
    """
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)


def block_spec(cfg: GptOssConfig) -> params.Tree:
    """Mixtral's layer, with sinks (H,) and biases of attention's output, router and experts."""
    tree = mixtral.block_spec(cfg)
    init = tree["router"]["kernel"].init
    D, E = cfg.embed_dim, cfg.num_experts
    out_init = tree["experts"]["down"].init
    attn = tree["attn"] | {
        "o_bias": Param((D,), ("embed",), zeros()),
        "sinks": Param((cfg.num_heads,), ("heads",), init),
    }
    router = moe.router_spec(D, E, init=init, bias_init=init)
    experts = moe.spec(E, D, cfg.mlp_dim, init=init, out_init=out_init, bias=True)
    return tree | {"attn": attn, "router": router, "experts": experts}


def embed(cfg: GptOssConfig, *args):
    """As `llama.embed`. The layers also get (L,) bool, which of them have the window."""
    x_BTD, _, shared = llama.embed(cfg, *args)
    return x_BTD, is_local(cfg), shared


def block(cfg: GptOssConfig, *args, train: bool):
    """As `mixtral.block`, with the clamped SwiGLU."""
    activation = functools.partial(clamped_swiglu, alpha=cfg.swiglu_alpha, limit=cfg.swiglu_limit)
    return mixtral.block(cfg, *args, train=train, activation=activation)


PRESETS = {
    "gpt-oss-20b": GptOssConfig(),
    "gpt-oss-120b": GptOssConfig(num_layers=36, num_experts=128),
}
