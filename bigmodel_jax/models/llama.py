"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU (arXiv:2302.13971, 2307.09288, 2407.21783).

The block also serves the families that differ from it by a field: mistral.py (window), qwen.py (biases, norms of q, k).

Shapes: B batch, T tokens, S cache length, D embed, H heads, K kv heads, h head_dim, V vocab, L layers.
"""

import dataclasses
from typing import ClassVar

from bigmodel_jax.core import params
from bigmodel_jax.core.params import normal
from bigmodel_jax.core.ranges import Count, CountOrZero, Depth, NonNegative, Positive
from bigmodel_jax.core.sharding import constrain
from bigmodel_jax.models import decoder
from bigmodel_jax.models.base import Model, ModelConfig
from bigmodel_jax.models.compute import Compute
from bigmodel_jax.models.decoder import ROTARY, SIZES, table_spec, update_cache
from bigmodel_jax.nn import feedforward, linear, norm, position
from bigmodel_jax.nn.attention import attention
from bigmodel_jax.nn.head import Head


@dataclasses.dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """A decoder of the Llama family: RMS norms, rotary positions, grouped queries, a gated MLP (arXiv:2302.13971).

    The defaults are those of Llama 2 7B. Widths are in units, `window` and `max_seq_len` in tokens (window 0: all).
    """

    vocab_size: Count = 32_000
    num_layers: Depth = 32
    embed_dim: Count = 4096
    num_heads: Count = 32
    num_kv_heads: Count = 32
    head_dim: Count = 128
    mlp_dim: Count = 11_008
    max_seq_len: Count = 4096
    rope_theta: Positive = 10_000.0
    rope_scaling: position.RopeScaling = position.RopeScaling()
    window: CountOrZero = 0  # tokens that a token sees, itself included; 0 = all before it
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_eps: NonNegative = 1e-5
    init_std: NonNegative = 0.02
    depth_scaled_init: bool = False  # what adds to the residual starts at init_std / sqrt(2 num_layers), as in GPT-2
    tied_embeddings: bool = False
    compute: Compute = Compute()
    pad_vocab: Count = 1  # the tables have a multiple of so many rows; what lies behind the vocabulary is never a token

    SIZES: ClassVar[tuple] = (*SIZES, ROTARY)

    def inputs(self):
        return {"tokens": None}

    def make(self) -> Model:
        return model(self)

    def windows(self) -> tuple[int, ...]:
        return (self.window,) * self.num_layers

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
    init = normal(cfg.init_std)
    out_init = normal(cfg.init_std * (2 * cfg.num_layers) ** -0.5) if cfg.depth_scaled_init else init
    return {
        "attn_norm": norm.rms_spec(cfg.embed_dim),
        "attn": attention.spec(
            cfg.embed_dim,
            cfg.num_heads,
            cfg.num_kv_heads,
            cfg.head_dim,
            init=init,
            out_init=out_init,
            bias=cfg.qkv_bias,
            out_bias=False,
            qk_norm=cfg.qk_norm,
        ),
        "mlp_norm": norm.rms_spec(cfg.embed_dim),
        "mlp": feedforward.swiglu_spec(cfg.embed_dim, cfg.mlp_dim, init=init, out_init=out_init),
    }


def spec(cfg: LlamaConfig, block_spec=block_spec) -> params.Tree:
    init = normal(cfg.init_std)
    tree = {
        "embed": table_spec(cfg, init),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "norm": norm.rms_spec(cfg.embed_dim),
    }
    if not cfg.tied_embeddings:
        tree["head"] = table_spec(cfg, init)
    return tree


def attend(cfg: LlamaConfig, p, x_BTD, cache, q_where, k_where, angles, index, *, local=None):
    """The attention half of a block, with its residual; (x, the layer's cache). local: whether its window holds."""
    h = norm.rms(p["attn_norm"], x_BTD, eps=cfg.norm_eps)
    q, k, v = attention.qkv(p["attn"], h, norm_eps=cfg.norm_eps)
    q, k = position.rope(q, angles), position.rope(k, angles)
    k, v = update_cache(cache, k, v, index)
    options = {"window": cfg.window or None, "local": local, "sinks": p["attn"].get("sinks")}
    h = attention.attend(q, k, v, q_where, k_where, **options, implementation=cfg.compute.attention)
    x_BTD = constrain(x_BTD + attention.project_out(p["attn"], h), "batch", "seq", "embed")
    return x_BTD, None if cache is None else {"k": k, "v": v}


def block(cfg: LlamaConfig, p, x_BTD, xs, *where, train):
    cache, _ = xs
    x_BTD, cache = attend(cfg, p, x_BTD, cache, *where)
    h = norm.rms(p["mlp_norm"], x_BTD, eps=cfg.norm_eps)
    return constrain(x_BTD + feedforward.swiglu(p["mlp"], h), "batch", "seq", "embed"), (cache, None)


def embed(cfg: LlamaConfig, p, tokens, positions, rng):
    angles = position.rope_angles(positions, cfg.head_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling)
    return linear.embed(p["embed"], tokens), None, (angles,)


def head(cfg: LlamaConfig, p, x_BTD) -> Head:
    x_BTD = norm.rms(p["norm"], x_BTD, eps=cfg.norm_eps)
    return Head(x_BTD, p["embed" if cfg.tied_embeddings else "head"]["table"], vocab=cfg.vocab_size)


def model(cfg: LlamaConfig, block_spec=block_spec, **parts) -> Model:
    """The model; block_spec, and of `decoder.model` block, embed, head and losses may be another's."""
    return decoder.model(cfg, spec(cfg, block_spec), **({"embed": embed, "block": block, "head": head} | parts))


LLAMA_3_8B = LlamaConfig(vocab_size=128_256, num_kv_heads=8, mlp_dim=14_336, max_seq_len=8192, rope_theta=500_000.0)
LLAMA_3_1_8B = dataclasses.replace(
    LLAMA_3_8B, max_seq_len=131_072, rope_scaling=position.RopeScaling(kind="llama3", factor=8.0)
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49_152,
    num_layers=30,
    embed_dim=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_dim=1536,
    max_seq_len=8192,
    rope_theta=100_000.0,
    tied_embeddings=True,
)
PRESETS = {
    "llama-7b": LlamaConfig(max_seq_len=2048, norm_eps=1e-6),
    "llama-13b": LlamaConfig(
        num_layers=40, embed_dim=5120, num_heads=40, num_kv_heads=40, mlp_dim=13_824, max_seq_len=2048, norm_eps=1e-6
    ),
    "llama-2-7b": LlamaConfig(),
    "llama-2-13b": LlamaConfig(num_layers=40, embed_dim=5120, num_heads=40, num_kv_heads=40, mlp_dim=13_824),
    "llama-2-70b": LlamaConfig(num_layers=80, embed_dim=8192, num_heads=64, num_kv_heads=8, mlp_dim=28_672),
    "llama-3-8b": LLAMA_3_8B,
    "llama-3-70b": dataclasses.replace(LLAMA_3_8B, num_layers=80, embed_dim=8192, num_heads=64, mlp_dim=28_672),
    "llama-3.1-8b": LLAMA_3_1_8B,
    "llama-3.1-70b": dataclasses.replace(LLAMA_3_1_8B, num_layers=80, embed_dim=8192, num_heads=64, mlp_dim=28_672),
    "llama-3.1-405b": dataclasses.replace(
        LLAMA_3_1_8B, num_layers=126, embed_dim=16_384, num_heads=128, mlp_dim=53_248
    ),
    "llama-3.2-1b": dataclasses.replace(
        LLAMA_3_1_8B,
        num_layers=16,
        embed_dim=2048,
        head_dim=64,
        mlp_dim=8192,
        tied_embeddings=True,
        rope_scaling=dataclasses.replace(LLAMA_3_1_8B.rope_scaling, factor=32.0),
    ),
    "smollm2-135m": SMOLLM2_135M,
    "smollm2-360m": dataclasses.replace(
        SMOLLM2_135M, num_layers=32, embed_dim=960, num_heads=15, num_kv_heads=5, mlp_dim=2560
    ),
    "smollm2-1.7b": dataclasses.replace(
        SMOLLM2_135M,
        num_layers=24,
        embed_dim=2048,
        num_heads=32,
        num_kv_heads=32,
        mlp_dim=8192,
        rope_theta=130_000.0,
    ),
    "tinyllama-1.1b": LlamaConfig(
        num_layers=22, embed_dim=2048, num_kv_heads=4, head_dim=64, mlp_dim=5632, max_seq_len=2048
    ),
}
