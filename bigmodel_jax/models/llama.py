"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

arXiv:2302.13971, 2307.09288, 2407.21783. The families that differ from Llama by a few fields use
the same block: mistral.py (window), qwen.py (biases, norms of queries and keys), smollm3.py (layers
without positions), olmo.py (norms after each half), granite.py (multipliers), glm.py (more norms,
partial rotation).

Shapes: B batch, T tokens, S cache length, D embed, H heads, K kv heads, h head_dim, F mlp, V vocab,
L layers.
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
    """A decoder-only Transformer of the Llama family (Touvron et al., arXiv:2302.13971).

    Each layer applies attention and a SwiGLU feed-forward layer, each to the RMS-normed input, and
    adds the result to the residual stream. Attention has rotary positions (arXiv:2104.09864) and
    grouped queries (arXiv:2305.13245). The reference implementation is transformers'
    `LlamaForCausalLM`. The defaults are those of Llama 2 7B. `PRESETS` has other published sizes.

    vocab_size: tokens in the vocabulary. num_layers: number of blocks.
    embed_dim: width of the residual stream. mlp_dim: hidden width of the feed-forward layer.
    num_heads, head_dim: query heads, and dimensions of a head. Their product need not be embed_dim.
    num_kv_heads: heads of keys and values, a divisor of num_heads.
    max_seq_len: the longest sequence, in tokens.
    rope_theta, rope_scaling: base of the rotary frequencies, and how longer contexts change them.
    window: tokens that a token sees, itself included; 0 = all tokens before it.
    qkv_bias, qk_norm: whether queries, keys and values have biases, or queries and keys RMSNorms.
    norm_eps: added to the mean square in every RMSNorm.
    init_std, depth_scaled_init: standard deviation of the initial weights, and whether the matrices
    that add to the residual start smaller in deeper models.
    tied_embeddings: whether the head shares the embedding table.
    compute: how layers are computed (remat, unrolling, implementation of attention).
    pad_vocab: the tables' rows are padded to a multiple of this.
    """

    vocab_size: Count = 32_000  # tokens in the vocabulary
    num_layers: Depth = 32  # number of blocks
    embed_dim: Count = 4096  # width of the residual stream
    num_heads: Count = 32  # attention heads of a layer
    num_kv_heads: Count = 32  # heads of keys and values; a divisor of num_heads
    head_dim: Count = 128  # dimensions of a head
    mlp_dim: Count = 11_008  # hidden width of the feed-forward layer
    max_seq_len: Count = 4096  # longest sequence, in tokens
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    rope_scaling: position.RopeScaling = position.RopeScaling()
    window: CountOrZero = 0  # tokens that a token sees, itself included; 0 = all before it
    qkv_bias: bool = False  # whether queries, keys and values have biases
    qk_norm: bool = False  # whether each head's queries and keys have an RMSNorm
    norm_eps: NonNegative = 1e-5  # added to the mean square in every RMSNorm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    depth_scaled_init: bool = False  # what adds to the residual starts at init_std / sqrt(2 num_layers), as in GPT-2
    tied_embeddings: bool = False  # whether the head shares the embedding table
    compute: Compute = Compute()
    pad_vocab: Count = 1  # the tables' rows are padded to a multiple of this; padding rows are never tokens

    SIZES: ClassVar[tuple] = (*SIZES, ROTARY)
    # Some families that use this block make fields of these constants, which hold Llama's values.
    rotary_dim: ClassVar[int] = 0  # a head's dimensions that rotary positions rotate; 0 = all
    rope_interleaved: ClassVar[bool] = False  # whether neighbouring dimensions form the rotated pairs
    attention_multiplier: ClassVar[float] = 0.0  # factor of attention's logits; 0 = 1/sqrt(head_dim)
    embedding_multiplier: ClassVar[float] = 1.0  # factor of the embeddings
    residual_multiplier: ClassVar[float] = 1.0  # factor of what each half of a block adds
    logits_scaling: ClassVar[float] = 1.0  # divisor of the logits

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
    """One layer: RMSNorm (D,), attention q (D, H, h), k and v (D, K, h), o (H, h, D), and an MLP.

    The MLP has gate and up (D, F) and down (F, D), after its own RMSNorm.
    """
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
    """The table (rows, D), stacked layers, last norm, and an untied head (rows, D)."""
    init = normal(cfg.init_std)
    tree = {
        "embed": table_spec(cfg, init),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "norm": norm.rms_spec(cfg.embed_dim),
    }
    if not cfg.tied_embeddings:
        tree["head"] = table_spec(cfg, init)
    return tree


def normed(cfg: LlamaConfig, p, name: str, x_BTD):
    """x (B, T, D) after the RMSNorm called `name`; x itself if the block has no such norm."""
    return norm.rms(p[name], x_BTD, eps=cfg.norm_eps) if name in p else x_BTD


def add(cfg: LlamaConfig, p, name: str, x_BTD, h_BTD):
    """The residual sum x + h, (B, T, D).

    h first passes the norm called `name` if the block has one.
    """
    h_BTD = normed(cfg, p, name, h_BTD)
    h_BTD = h_BTD if cfg.residual_multiplier == 1.0 else h_BTD * cfg.residual_multiplier
    return constrain(x_BTD + h_BTD, "batch", "seq", "embed")


def attend(cfg: LlamaConfig, p, x_BTD, cache, q_where, k_where, angles, index, *, local=None):
    """The attention half of a block, with its residual: (x (B, T, D), the layer's cache).

    index: the cache's first new column. local: whether this layer has the window; None:
    `cfg.window` holds.
    """
    q, k, v = attention.qkv(p["attn"], normed(cfg, p, "attn_norm", x_BTD), norm_eps=cfg.norm_eps)
    q, k = (position.rope(x, angles, interleaved=cfg.rope_interleaved) for x in (q, k))
    k, v = update_cache(cache, k, v, index)
    options = {"window": cfg.window or None, "local": local, "sinks": p["attn"].get("sinks")}
    options |= {"scale": cfg.attention_multiplier or None}
    h = attention.attend(q, k, v, q_where, k_where, **options, implementation=cfg.compute.attention)
    x_BTD = add(cfg, p, "attn_post_norm", x_BTD, attention.project_out(p["attn"], h))
    return x_BTD, None if cache is None else {"k": k, "v": v}


def block(cfg: LlamaConfig, p, x_BTD, xs, *where, train, local=None):
    """Returns (x (B, T, D), (the layer's cache, None)).

    xs: the layer's cache, and a part that is unused here.
    """
    cache, _ = xs
    x_BTD, cache = attend(cfg, p, x_BTD, cache, *where, local=local)
    h = feedforward.swiglu(p["mlp"], normed(cfg, p, "mlp_norm", x_BTD))
    return add(cfg, p, "mlp_post_norm", x_BTD, h), (cache, None)


def embed(cfg: LlamaConfig, p, tokens, positions, rng):
    """Returns (embeddings (B, T, D), None, (rotary angles,)) of tokens and positions (B, T)."""
    turned = cfg.rotary_dim or cfg.head_dim
    angles = position.rope_angles(positions, turned, theta=cfg.rope_theta, scaling=cfg.rope_scaling)
    x_BTD = linear.embed(p["embed"], tokens)
    return x_BTD if cfg.embedding_multiplier == 1.0 else x_BTD * cfg.embedding_multiplier, None, (angles,)


def head(cfg: LlamaConfig, p, x_BTD) -> Head:
    """The inputs of the logits: the normed states (B, T, D) and the table of the head."""
    x_BTD = norm.rms(p["norm"], x_BTD, eps=cfg.norm_eps)
    x_BTD = x_BTD if cfg.logits_scaling == 1.0 else x_BTD / cfg.logits_scaling
    return Head(x_BTD, p["embed" if cfg.tied_embeddings else "head"]["table"], vocab=cfg.vocab_size)


def model(cfg: LlamaConfig, block_spec=block_spec, **parts) -> Model:
    """The model. Families replace block_spec, or parts of `decoder.model`."""
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
