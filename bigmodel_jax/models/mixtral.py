"""Mixtral: a Llama whose every feed-forward layer is a mixture of experts (arXiv:2401.04088).

The block also serves qwen_moe.py (norms of q, k; many small experts) and gpt_oss.py (sinks, biases, a clamped SwiGLU).
Shapes as in llama.py; E experts, F their mlp_dim.
"""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core import params
from bigmodel_jax.core.ranges import Count, NonNegative, Positive
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import llama
from bigmodel_jax.models.base import Model, Out
from bigmodel_jax.models.decoder import make_cache, where
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.sizes import AtMost, Cut
from bigmodel_jax.nn import linear, norm, position, stack
from bigmodel_jax.nn.experts import moe
from bigmodel_jax.nn.head import Head


@dataclasses.dataclass(frozen=True)
class MixtralConfig(LlamaConfig):
    """Defaults: 8x7B. mlp_dim is that of one expert."""

    num_kv_heads: Count = 8
    mlp_dim: Count = 14_336
    max_seq_len: Count = 32_768
    rope_theta: Positive = 1_000_000.0
    num_experts: Count = 8
    experts_per_token: Count = 2
    normalized_weights: bool = True  # the weights of a token's experts sum to 1
    capacity_factor: NonNegative = (
        0.0  # in training, an expert's places per row over its even share; 0 = no token is dropped
    )
    expert_buffer: NonNegative = 0.0
    "in training over several devices, rows that one's experts take over an even share; 0 = no token is dropped"
    load_balancing_loss: NonNegative = 0.02  # coefficients of the auxiliary losses
    router_z_loss: NonNegative = 0.0

    SIZES: ClassVar[tuple] = (
        *LlamaConfig.SIZES,
        AtMost("experts_per_token", "num_experts"),
        Cut("num_experts", "experts"),
    )

    def make(self) -> Model:
        return Model(
            spec=spec(self), apply=functools.partial(apply, self), make_cache=functools.partial(make_cache, self)
        )

    @classmethod
    def tiny(cls) -> "MixtralConfig":
        return dataclasses.replace(super().tiny(), mlp_dim=32, num_experts=4, experts_per_token=2)


def block_spec(cfg: MixtralConfig) -> params.Tree:
    tree = llama.block_spec(cfg)
    init, out_init = tree["mlp"]["gate"].init, tree.pop("mlp")["down"].init
    return tree | {
        "router": moe.router_spec(cfg.embed_dim, cfg.num_experts, init=init),
        "experts": moe.spec(cfg.num_experts, cfg.embed_dim, cfg.mlp_dim, init=init, out_init=out_init),
    }


def spec(cfg: MixtralConfig, block_spec=block_spec) -> params.Tree:
    return llama.spec(cfg) | {"layers": params.stack(block_spec(cfg), cfg.num_layers)}


def feed_forward(cfg: MixtralConfig, p, x_BTD, mask_BT, *, train: bool, activation: moe.Activation):
    """The mixture half of a block, with its residual; (x, the layer's load)."""
    h = norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps)
    routing = moe.route(p["router"], h, cfg.experts_per_token, normalize=cfg.normalized_weights)
    # Tokens are dropped in training alone: what a token is told later must not depend on the tokens beside it.
    room = {"capacity_factor": cfg.capacity_factor, "buffer": cfg.expert_buffer} if train else {}
    y = moe.experts(p["experts"], h, routing, mask_BT, **room, activation=activation)
    return constrain(x_BTD + y, "batch", "seq", "embed"), moe.load(routing, mask_BT)


def apply(
    cfg: MixtralConfig,
    p,
    batch,
    *,
    rng=None,
    train=False,
    cache=None,
    local: np.ndarray | None = None,
    activation: moe.Activation = moe.swiglu,
) -> Out:
    """Logits (B, T, V) float32 and the auxiliary losses; batch: tokens, positions, segment_ids (B, T); with a cache
    they follow its own. local: (L,) bool, where the window holds in some
    layers only."""
    q_where, k_where, cache = where(batch, cache)
    angles = position.rope_angles(q_where.positions, cfg.head_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling)
    x_BTD = constrain(linear.embed(p["embed"], batch["tokens"]), "batch", "seq", "embed")

    def block(layer, x, xs, q_where, k_where, angles):
        layer_cache, local = xs
        x, layer_cache = llama.attend(
            cfg, layer, x, layer_cache, q_where, k_where, angles, cache and cache.index, local=local
        )
        x, load = feed_forward(cfg, layer, x, q_where.segments > 0, train=train, activation=activation)
        return x, (layer_cache, load)

    xs = (None if cache is None else cache.layers, local)
    options = {"shared": (q_where, k_where, angles), "remat": cfg.compute.remat, "unroll": cfg.compute.unroll}
    x_BTD, (layers, loads) = stack.run(block, p["layers"], x_BTD, xs, **options)
    x_BTD = norm.rms(p["norm"], x_BTD, eps=cfg.norm_eps)
    head = Head(x_BTD, p["embed" if cfg.tied_embeddings else "head"]["table"], vocab=cfg.vocab_size)
    return Out(
        head.logits(),
        losses=moe.losses(loads, balance=cfg.load_balancing_loss, z=cfg.router_z_loss, share=moe.token_share(batch)),
        cache=cache and cache.advance(layers, jnp.shape(batch["tokens"])[1]),
        head=head,
    )


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
