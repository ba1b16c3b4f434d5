"""Mixtral: a Llama whose feed-forward layers are mixtures of experts (arXiv:2401.04088).

qwen_moe.py (norms of queries and keys, many small experts) and gpt_oss.py (sinks, biases, a clamped
SwiGLU) use the same block. Shapes as in llama.py; E experts, F the width of one expert.
"""

import dataclasses
from typing import ClassVar

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Count, NonNegative, Positive
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import llama
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.sizes import AtMost, Cut
from bigmodel_jax.nn import norm
from bigmodel_jax.nn.experts import moe


@dataclasses.dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Mixtral, a sparse mixture of experts (Jiang et al., arXiv:2401.04088); defaults: 8x7B.

    The reference implementation is transformers' `MixtralForCausalLM`. mlp_dim is the hidden width
    of one expert. Other fields are `LlamaConfig`'s.
    """

    num_kv_heads: Count = 8
    mlp_dim: Count = 14_336
    max_seq_len: Count = 32_768
    rope_theta: Positive = 1_000_000.0
    num_experts: Count = 8  # experts of a layer
    experts_per_token: Count = 2  # experts that process a token
    normalized_weights: bool = True  # whether the weights of a token's experts sum to 1
    capacity_factor: NonNegative = (
        0.0  # in training, an expert's places per row, relative to an even share; 0 = no token is dropped
    )
    expert_buffer: NonNegative = 0.0
    """in training, rows that a device's experts take, relative to an even share; 0 = no token is
    dropped"""
    load_balancing_loss: NonNegative = 0.02  # coefficient of the loss that balances experts
    router_z_loss: NonNegative = 0.0  # coefficient of the loss that keeps the router's logits small

    SIZES: ClassVar[tuple] = (
        *LlamaConfig.SIZES,
        AtMost("experts_per_token", "num_experts"),
        Cut("num_experts", "experts"),
    )

    def make(self) -> Model:
        return llama.model(self, block_spec, block=block, losses=losses)

    @classmethod
    def tiny(cls) -> "MixtralConfig":
        return dataclasses.replace(super().tiny(), mlp_dim=32, num_experts=4, experts_per_token=2)


def block_spec(cfg: MixtralConfig) -> params.Tree:
    """Llama's layer, with a router (D, E) and experts (E, D, F), (E, F, D) in place of the MLP."""
    tree = llama.block_spec(cfg)
    init, out_init = tree["mlp"]["gate"].init, tree.pop("mlp")["down"].init
    return tree | {
        "router": moe.router_spec(cfg.embed_dim, cfg.num_experts, init=init),
        "experts": moe.spec(cfg.num_experts, cfg.embed_dim, cfg.mlp_dim, init=init, out_init=out_init),
    }


def feed_forward(cfg: MixtralConfig, p, x_BTD, mask_BT, *, train: bool, activation: moe.Activation):
    """The mixture half of a block, with its residual: (x (B, T, D), the layer's load)."""
    h = norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps)
    routing = moe.route(p["router"], h, cfg.experts_per_token, normalize=cfg.normalized_weights)
    # Tokens are dropped in training alone: elsewhere the output must not depend on other rows.
    room = {"capacity_factor": cfg.capacity_factor, "buffer": cfg.expert_buffer} if train else {}
    y = moe.experts(p["experts"], h, routing, mask_BT, **room, activation=activation)
    return constrain(x_BTD + y, "batch", "seq", "embed"), moe.load(routing, mask_BT)


def block(cfg: MixtralConfig, p, x_BTD, xs, q_where, *where, train: bool, activation: moe.Activation = moe.swiglu):
    """Returns (x (B, T, D), (the layer's cache, its load)).

    xs: the layer's cache, and whether the layer has the window.
    """
    cache, local = xs
    x_BTD, cache = llama.attend(cfg, p, x_BTD, cache, q_where, *where, local=local)
    x_BTD, load = feed_forward(cfg, p, x_BTD, q_where.segments > 0, train=train, activation=activation)
    return x_BTD, (cache, load)


def losses(cfg: MixtralConfig, loads: moe.Load, batch) -> dict:
    """The auxiliary losses by name: load balancing, and the router's z-loss."""
    share = moe.token_share(batch)
    return moe.losses(loads, balance=cfg.load_balancing_loss, z=cfg.router_z_loss, share=share)


PRESETS = {
    "mixtral-8x7b": MixtralConfig(),
    "mixtral-8x22b": MixtralConfig(
        num_layers=56,
        embed_dim=6144,
        num_heads=48,
        mlp_dim=16_384,
        max_seq_len=65_536,
        load_balancing_loss=0.001,
    ),
}
