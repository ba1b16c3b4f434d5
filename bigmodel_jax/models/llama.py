"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al., arXiv:2302.13971, 2307.09288).

Shapes: B batch, T tokens, S cache length, D embed, H heads, K kv heads, h head_dim, V vocab, L layers.
"""

import dataclasses
import functools

import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models.base import Model, ModelConfig, Out
from bigmodel_jax.models.decoder import check_decoder, make_cache, update_cache, where
from bigmodel_jax.nn import attention, feedforward, linear, norm, position, stack
from bigmodel_jax.nn.attention import Implementation


@dataclasses.dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    vocab_size: int = 32_000
    num_layers: int = 32
    embed_dim: int = 4096
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    mlp_dim: int = 11_008
    max_seq_len: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    tied_embeddings: bool = False
    remat: stack.Remat = "none"
    unroll: bool = False  # one copy of the layer per layer in the program: faster on CPU, slower to compile when deep
    attention: Implementation = "auto"

    def make(self) -> Model:
        return Model(
            spec=spec(self), apply=functools.partial(apply, self), make_cache=functools.partial(make_cache, self)
        )

    def validate(self, parallel) -> None:
        check_decoder(self, parallel)

    @classmethod
    def tiny(cls) -> "LlamaConfig":
        return cls(
            vocab_size=64,
            num_layers=2,
            embed_dim=32,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            mlp_dim=64,
            max_seq_len=32,
        )


def block_spec(cfg: LlamaConfig) -> params.Tree:
    init, out_init = normal(cfg.init_std), normal(cfg.init_std * (2 * cfg.num_layers) ** -0.5)
    return {
        "attn_norm": norm.rms_spec(cfg.embed_dim),
        "attn": attention.spec(
            cfg.embed_dim, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, init=init, out_init=out_init
        ),
        "mlp_norm": norm.rms_spec(cfg.embed_dim),
        "mlp": feedforward.swiglu_spec(cfg.embed_dim, cfg.mlp_dim, init=init, out_init=out_init),
    }


def spec(cfg: LlamaConfig) -> params.Tree:
    init = normal(cfg.init_std)
    tree = {
        "embed": linear.embedding_spec(cfg.vocab_size, cfg.embed_dim, init=init),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "norm": norm.rms_spec(cfg.embed_dim),
    }
    if not cfg.tied_embeddings:
        tree["head"] = linear.embedding_spec(cfg.vocab_size, cfg.embed_dim, init=init)
    return tree


def block(cfg: LlamaConfig, p, x_BTD, cache, q_where, k_where, angles, index):
    h = norm.rms(p["attn_norm"], x_BTD, eps=cfg.norm_eps)
    q, k, v = attention.qkv(p["attn"], h)
    q, k = position.rope(q, angles), position.rope(k, angles)
    k, v = update_cache(cache, k, v, index)
    h = attention.attend(q, k, v, q_where, k_where, implementation=cfg.attention)
    x_BTD = constrain(x_BTD + attention.project_out(p["attn"], h), "batch", "seq", "embed")
    h = norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps)
    x_BTD = constrain(x_BTD + feedforward.swiglu(p["mlp"], h), "batch", "seq", "embed")
    return x_BTD, None if cache is None else {"k": k, "v": v}


def apply(cfg: LlamaConfig, p, batch, *, rng=None, train=False, cache=None) -> Out:
    """Logits (B, T, V) float32; batch: tokens, positions, segment_ids (B, T); with a cache they follow its own."""
    q_where, k_where, cache = where(batch, cache)
    angles = position.rope_angles(q_where.positions, cfg.head_dim, theta=cfg.rope_theta)
    x_BTD = constrain(linear.embed(p["embed"], batch["tokens"]), "batch", "seq", "embed")
    layers = None if cache is None else cache.layers

    def body(layer, x, layer_cache):
        return block(cfg, layer, x, layer_cache, q_where, k_where, angles, cache and cache.index)

    x_BTD, layers = stack.run(body, p["layers"], x_BTD, layers, remat=cfg.remat, unroll=cfg.unroll)
    x_BTD = norm.rms(p["norm"], x_BTD, eps=cfg.norm_eps)
    logits = linear.unembed(p["embed" if cfg.tied_embeddings else "head"], x_BTD)
    return Out(
        constrain(logits, "batch", "seq", "vocab"), cache=cache and cache.advance(layers, jnp.shape(batch["tokens"])[1])
    )
