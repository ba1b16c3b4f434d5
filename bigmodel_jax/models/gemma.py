"""The text models Gemma 1, 2 and 3 (arXiv:2403.08295, 2408.00118, 2503.19786).

All three multiply embeddings by sqrt(D), scale RMSNorms by 1 + scale, and use GeGLU. From Gemma 2
on, norms also follow attention and MLP, and layers with a window alternate with global ones. Gemma
2 caps the logits of attention and of the model. Gemma 3 normalises queries and keys instead, and
its global layers have a larger rope_theta.

Shapes: B batch, T tokens, S cache length, D embed, H heads, K kv heads, h head_dim, V vocab, L
layers.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bigmodel_jax.core import params
from bigmodel_jax.core.params import Param, normal, zeros
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
class GemmaConfig(ModelConfig):
    """Gemma (arXiv:2403.08295), a decoder with GeGLU and scaled embeddings; defaults: Gemma 7B.

    The reference implementation is transformers' `GemmaForCausalLM`.
    """

    vocab_size: Count = 256_000  # tokens in the vocabulary
    num_layers: Depth = 28  # number of blocks
    embed_dim: Count = 3072  # width of the residual stream
    num_heads: Count = 16  # attention heads of a layer
    num_kv_heads: Count = 16  # heads of keys and values; a divisor of num_heads
    head_dim: Count = 256  # dimensions of a head
    mlp_dim: Count = 24_576  # hidden width of the feed-forward layer
    max_seq_len: Count = 8192  # longest sequence, in tokens
    rope_theta: Positive = 10_000.0  # base of the rotary frequencies
    rope_scaling: position.RopeScaling = position.RopeScaling()  # scaling of the rotary positions of global layers
    local_rope_theta: Positive = 10_000.0  # rope_theta of local layers
    window: CountOrZero = 0  # tokens that a token of a local layer sees, itself included; 0 = no local layers
    global_every: Count = 1  # every n-th layer is global: layers n - 1, 2n - 1, ... counted from 0
    query_pre_attn_scalar: CountOrZero = 0  # queries are divided by its square root; 0 = head_dim
    attn_softcap: NonNegative = 0.0  # attention's logits become c tanh(logits / c); 0 = no cap
    final_softcap: NonNegative = 0.0  # the model's logits become c tanh(logits / c); 0 = no cap
    post_norms: bool = False  # whether norms also follow attention and MLP
    qk_norm: bool = False  # whether each head's queries and keys are normalised
    norm_eps: NonNegative = 1e-6  # added to the mean square in every RMSNorm
    init_std: NonNegative = 0.02  # standard deviation of the initial weights
    compute: Compute = Compute()
    pad_vocab: Count = 1  # the tables' rows are padded to a multiple of this; padding rows are never tokens

    SIZES: ClassVar[tuple] = (*SIZES, ROTARY)

    @property
    def tied_embeddings(self) -> bool:
        return True

    def inputs(self):
        return {"tokens": None}

    def no_mup(self, depth):
        return "multiplies its embeddings by the root of a width itself"

    def make(self) -> Model:
        return decoder.model(self, spec(self), embed=embed, block=block, head=head)

    def windows(self) -> tuple[int, ...]:
        local = [(i + 1) % self.global_every != 0 for i in range(self.num_layers)]
        return tuple(self.window if one else 0 for one in local)

    @classmethod
    def tiny(cls) -> "GemmaConfig":
        sizes = {"vocab_size": 64, "num_layers": 2, "embed_dim": 32, "mlp_dim": 64, "max_seq_len": 32}
        return cls(**sizes, num_heads=4, num_kv_heads=2, head_dim=8)


@dataclasses.dataclass(frozen=True)
class Gemma2Config(GemmaConfig):
    """Gemma 2 (arXiv:2408.00118), with local layers and soft caps; defaults: Gemma 2 9B.

    The reference implementation is transformers' `Gemma2ForCausalLM`. The fields are
    `GemmaConfig`'s.
    """

    num_layers: Depth = 42
    embed_dim: Count = 3584
    num_kv_heads: Count = 8
    mlp_dim: Count = 14_336
    window: CountOrZero = 4096
    global_every: Count = 2
    attn_softcap: NonNegative = 50.0
    final_softcap: NonNegative = 30.0
    post_norms: bool = True

    @classmethod
    def tiny(cls) -> "Gemma2Config":
        return dataclasses.replace(super().tiny(), window=4)


@dataclasses.dataclass(frozen=True)
class Gemma3Config(GemmaConfig):
    """Gemma 3 (arXiv:2503.19786), five local layers per global one; defaults: Gemma 3 4B.

    The reference implementation is transformers' `Gemma3ForCausalLM`. The fields are
    `GemmaConfig`'s.
    """

    vocab_size: Count = 262_208
    num_layers: Depth = 34
    embed_dim: Count = 2560
    num_heads: Count = 8
    num_kv_heads: Count = 4
    mlp_dim: Count = 10_240
    max_seq_len: Count = 131_072
    rope_theta: Positive = 1_000_000.0
    rope_scaling: position.RopeScaling = position.RopeScaling("linear", factor=8.0, original_max_seq_len=131_072)
    window: CountOrZero = 1024
    global_every: Count = 6
    post_norms: bool = True
    qk_norm: bool = True

    @classmethod
    def tiny(cls) -> "Gemma3Config":
        return dataclasses.replace(super().tiny(), num_layers=3, window=4, global_every=2)


def rms_spec(dim: int, axis: str = "embed") -> params.Tree:
    """Returns {"scale": (dim,)}, initially zeros, since `rms` multiplies by 1 + scale."""
    return {"scale": Param((dim,), (axis,), zeros())}


def block_spec(cfg: GemmaConfig) -> params.Tree:
    """One layer: attention and a gated MLP, RMSNorms before and, with post_norms, after each."""
    init, D, h = normal(cfg.init_std), cfg.embed_dim, cfg.head_dim
    attn = attention.spec(D, cfg.num_heads, cfg.num_kv_heads, h, init=init, out_init=init)
    if cfg.qk_norm:
        attn |= {"q_norm": rms_spec(h, "head_dim"), "k_norm": rms_spec(h, "head_dim")}
    tree = {
        "attn_norm": rms_spec(D),
        "attn": attn,
        "mlp_norm": rms_spec(D),
        "mlp": feedforward.swiglu_spec(D, cfg.mlp_dim, init=init, out_init=init),
    }
    return tree | {"attn_post_norm": rms_spec(D), "mlp_post_norm": rms_spec(D)} if cfg.post_norms else tree


def spec(cfg: GemmaConfig) -> params.Tree:
    """The table (rows, D), which is also the head, the stacked layers, and the last norm."""
    return {
        "embed": table_spec(cfg, normal(cfg.init_std)),
        "layers": params.stack(block_spec(cfg), cfg.num_layers),
        "norm": rms_spec(cfg.embed_dim),
    }


def is_local(cfg: GemmaConfig) -> jax.Array | None:
    """Returns (L,) bool: which layers have the window; None if all layers are global."""
    return jnp.array(cfg.windows()) > 0 if cfg.window else None


def rms(cfg: GemmaConfig, p, x):
    """RMSNorm of x (..., D), multiplied by 1 + scale."""
    return norm.rms(p, x, eps=cfg.norm_eps, offset=1.0)


def attend(cfg: GemmaConfig, p, x_BTD, cache, local, q_where, k_where, angles, index):
    """Returns (attention's output (B, T, D) without norms and residual, the layer's cache).

    local: whether this layer has the window. angles: the rotary angles of global layers and of
    local layers.
    """
    q, k, v = attention.qkv(p, x_BTD, norm_eps=cfg.norm_eps, norm_offset=1.0)
    turn = angles[0]
    # A scan has one program for all layers, so each layer selects its angles by a traced flag.
    if local is not None:
        turn = jax.tree.map(lambda far, near: jnp.where(local, near, far), *angles)
    q, k = position.rope(q, turn), position.rope(k, turn)
    k, v = update_cache(cache, k, v, index)
    scale = (cfg.query_pre_attn_scalar or cfg.head_dim) ** -0.5
    h = attention.attend(
        q,
        k,
        v,
        q_where,
        k_where,
        window=cfg.window or None,
        local=local,
        scale=scale,
        softcap=cfg.attn_softcap,
        implementation=cfg.compute.attention,
    )
    return attention.project_out(p, h), None if cache is None else {"k": k, "v": v}


def block(cfg: GemmaConfig, p, x_BTD, xs, *where, train):
    """Returns (x (B, T, D), (the layer's cache, None)).

    xs: the layer's cache, and whether the layer is local.
    """
    cache, local = xs
    h, cache = attend(cfg, p["attn"], rms(cfg, p["attn_norm"], x_BTD), cache, local, *where)
    h = rms(cfg, p["attn_post_norm"], h) if cfg.post_norms else h
    x_BTD = constrain(x_BTD + h, "batch", "seq", "embed")
    h = feedforward.geglu(p["mlp"], rms(cfg, p["mlp_norm"], x_BTD))
    h = rms(cfg, p["mlp_post_norm"], h) if cfg.post_norms else h
    return constrain(x_BTD + h, "batch", "seq", "embed"), (cache, None)


def embed(cfg: GemmaConfig, p, tokens, positions, rng):
    """Returns (embeddings (B, T, D), which layers are local (L,), the rotary angles)."""
    angles = (
        position.rope_angles(positions, cfg.head_dim, theta=cfg.rope_theta, scaling=cfg.rope_scaling),
        position.rope_angles(positions, cfg.head_dim, theta=cfg.local_rope_theta),
    )
    x_BTD = linear.embed(p["embed"], tokens)
    # sqrt(D) is rounded to the embedding's dtype first, as in the training of the published models:
    # sqrt(3072) is 55.5 in bfloat16.
    return x_BTD * jnp.asarray(cfg.embed_dim**0.5, x_BTD.dtype), is_local(cfg), (angles,)


def head(cfg: GemmaConfig, p, x_BTD) -> Head:
    """The inputs of the logits: the normed states and the embedding table."""
    return Head(rms(cfg, p["norm"], x_BTD), p["embed"]["table"], softcap=cfg.final_softcap, vocab=cfg.vocab_size)


NO_SCALING = position.RopeScaling()
GEMMA3_SMALL = Gemma3Config(
    vocab_size=262_144, num_heads=4, num_kv_heads=1, max_seq_len=32_768, rope_scaling=NO_SCALING, window=512
)
PRESETS = {
    "gemma-2b": GemmaConfig(num_layers=18, embed_dim=2048, num_heads=8, num_kv_heads=1, mlp_dim=16_384),
    "gemma-7b": GemmaConfig(),
    "gemma-2-2b": Gemma2Config(num_layers=26, embed_dim=2304, num_heads=8, num_kv_heads=4, mlp_dim=9216),
    "gemma-2-9b": Gemma2Config(),
    "gemma-2-27b": Gemma2Config(
        num_layers=46,
        embed_dim=4608,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        mlp_dim=36_864,
        query_pre_attn_scalar=144,
    ),
    "gemma-3-270m": dataclasses.replace(GEMMA3_SMALL, num_layers=18, embed_dim=640, mlp_dim=2048),
    "gemma-3-1b": dataclasses.replace(GEMMA3_SMALL, num_layers=26, embed_dim=1152, mlp_dim=6912),
    "gemma-3-4b": Gemma3Config(),
    "gemma-3-12b": Gemma3Config(num_layers=48, embed_dim=3840, num_heads=16, num_kv_heads=8, mlp_dim=15_360),
    "gemma-3-27b": Gemma3Config(
        num_layers=62,
        embed_dim=5376,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        mlp_dim=21_504,
        query_pre_attn_scalar=168,
    ),
}
