"""Phi-3 and Phi-4: a Llama with partial rotary positions, a window, and rotary factors for length.

Abdin et al., arXiv:2404.14219 (Phi-3), 2412.08905 (Phi-4). The published models of the type `phi3`
are Phi-3, Phi-3.5, Phi-4 and Phi-4-mini.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.models import llama
from bigmodel_jax.models.base import Model
from bigmodel_jax.models.llama import LlamaConfig
from bigmodel_jax.models.sizes import AtMost, Multiple
from bigmodel_jax.nn import position
from bigmodel_jax.nn.position import LongRope


class RopeFits(NamedTuple):
    """A check: LongRoPE has one divisor for each rotated pair, and excludes any other scaling."""

    def wrong(self, cfg: Any, prefix: str, parallel: ParallelConfig) -> str:
        sets = {name: len(getattr(cfg.long_rope, name)) for name in ("short", "long")}
        pairs = cfg.rotary_dim // 2 if any(sets.values()) else 0
        for name, given in sets.items():
            if given != pairs:
                wanted = f"{prefix}rotary_dim / 2 = {pairs}, or both sets must be empty"
                return f"{prefix}long_rope.{name} has {given} values; it must have {wanted}"
        kind = cfg.rope_scaling.kind
        if pairs and kind != "none":
            return f"{prefix}rope_scaling.kind = {kind!r}; beside {prefix}long_rope it must be 'none'"
        return ""


@dataclasses.dataclass(frozen=True)
class Phi3Config(LlamaConfig):
    """Phi-3 (Abdin et al., arXiv:2404.14219); defaults: Phi-3-mini with 4096 tokens.

    The reference implementation is transformers' `Phi3ForCausalLM`. Other fields are
    `LlamaConfig`'s. With `long_rope`, the length of a row (when decoding, the length of the cache)
    selects the divisors of the rotary frequencies. All positions of a row therefore use one set.
    """

    vocab_size: Count = 32_064
    embed_dim: Count = 3072
    head_dim: Count = 96
    mlp_dim: Count = 8192
    window: CountOrZero = 2047
    rotary_dim: Count = 96  # number of a head's first dimensions that rotary positions rotate
    long_rope: LongRope = LongRope()  # divisors of the rotary frequencies, for short rows and for long ones

    SIZES: ClassVar[tuple] = (
        *LlamaConfig.SIZES,
        AtMost("rotary_dim", "head_dim"),
        Multiple("rotary_dim", 2, "rotary positions turn pairs of dimensions"),
        RopeFits(),
    )

    def make(self) -> Model:
        return llama.model(self, embed=embed, block=block)

    @classmethod
    def tiny(cls) -> "Phi3Config":
        long_rope = LongRope((1.0, 1.1), (1.5, 3.0), original_max_seq_len=2, attention_factor=1.2)
        return dataclasses.replace(super().tiny(), window=5, rotary_dim=4, long_rope=long_rope)


def embed(cfg: Phi3Config, p, tokens, positions, rng):
    """As `llama.embed`. With LongRoPE, `shared` holds the angles of short and of long rows."""
    x_BTD, xs, shared = llama.embed(cfg, p, tokens, positions, rng)
    if cfg.long_rope.short:
        shared = (position.long_rope_angles(positions, cfg.rotary_dim, cfg.rope_theta, cfg.long_rope),)
    return x_BTD, xs, shared


def block(cfg: Phi3Config, p, x_BTD, xs, q_where, k_where, angles, index, *, train):
    """As `llama.block`; with LongRoPE, the number of key columns selects the angles."""
    if cfg.long_rope.short:
        # The choice is static. A choice by the positions seen so far would rotate a new query by
        # other frequencies than the keys that the cache holds.
        angles = angles[k_where.positions.shape[1] > cfg.long_rope.original_max_seq_len]
    return llama.block(cfg, p, x_BTD, xs, q_where, k_where, angles, index, train=train)


# fmt: off
PHI_4_MINI_LONG = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7,
    32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on
PHI_3_MEDIUM = Phi3Config(
    num_layers=40, embed_dim=5120, num_heads=40, num_kv_heads=10, head_dim=128, mlp_dim=17_920, rotary_dim=128
)
PRESETS = {
    "phi-3-mini-4k": Phi3Config(),
    "phi-3-medium-4k": PHI_3_MEDIUM,
    "phi-4": dataclasses.replace(PHI_3_MEDIUM, vocab_size=100_352, max_seq_len=16_384, rope_theta=250_000.0, window=0),
    "phi-4-mini": Phi3Config(
        vocab_size=200_064,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        max_seq_len=131_072,
        window=262_144,
        tied_embeddings=True,
        long_rope=LongRope(
            (1.0,) * 48, PHI_4_MINI_LONG, 4096, attention_factor=position.long_rope_factor(131_072, 4096)
        ),
    ),
}
