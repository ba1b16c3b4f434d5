"""Rotary position embedding, and its extensions to longer contexts."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel_jax.core.ranges import Count, NonNegative, Positive


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies change for contexts `factor` times longer than those of pretraining.

    kind: linear divides all frequencies by factor (arXiv:2306.15595). llama3 divides the low ones
    (Llama 3.1). yarn divides the low ones, with a linear ramp to the others, and sharpens attention
    (arXiv:2309.00071). original_max_seq_len: context length of pretraining, in tokens.
    """

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    factor: Positive = 1.0
    original_max_seq_len: Count = 8192
    low_freq_factor: Positive = 1.0  # llama3: wavelengths above original_max_seq_len / this are divided by factor
    high_freq_factor: Positive = 4.0  # llama3: wavelengths below original_max_seq_len / this are kept
    beta_fast: Positive = 32.0  # yarn: frequencies of more turns over the original context than this are kept
    beta_slow: Positive = 1.0  # yarn: frequencies of fewer turns over it than this are divided by factor
    attention_factor: NonNegative = 0.0  # yarn: factor of cos and sin; 0 = 0.1 ln(factor) + 1
    truncate: bool = True  # yarn: whether the ramp's ends are rounded to whole dimensions


@dataclasses.dataclass(frozen=True)
class LongRope:
    """Two sets of divisors of the rotary frequencies, for short rows and long ones (LongRoPE).

    Ding et al., arXiv:2402.13753.
    short, long: one divisor for each rotated pair of dimensions. original_max_seq_len: the longest
    row, in tokens, that uses `short`. attention_factor: factor of cos and sin at every length.
    """

    short: tuple[Positive, ...] = ()  # divisors for rows of up to original_max_seq_len tokens; () = no LongRoPE
    long: tuple[Positive, ...] = ()  # divisors for longer rows
    original_max_seq_len: Count = 4096  # context length of pretraining, in tokens
    attention_factor: Positive = 1.0  # factor of cos and sin


def long_rope_factor(max_seq_len: int, original: int) -> float:
    """LongRoPE's factor of cos and sin for a context of `max_seq_len` tokens.

    original: tokens of the context in pretraining. The form is that of transformers'
    `_compute_longrope_parameters`.
    """
    stretch = max_seq_len / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0


def long_rope_angles(positions: jax.Array, dim: int, theta: float, long_rope: LongRope) -> tuple:
    """Returns ((cos, sin) of short rows, (cos, sin) of long rows), each (B, T, 1, dim/2).

    positions (B, T) int; dim: number of rotated dimensions of a head.
    """
    plain = frequencies(dim, theta)
    sets = (plain / np.asarray(divisors, np.float32) for divisors in (long_rope.short, long_rope.long))
    return tuple(_angles(positions, frequency, long_rope.attention_factor) for frequency in sets)


def frequencies(head_dim: int, theta: float, scaling: RopeScaling = RopeScaling()) -> np.ndarray:
    """Radians per position of each pair of dimensions, (head_dim/2,) float32."""
    frequency = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    if scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling.kind == "llama3":
        frequency = _llama3(frequency, scaling)
    elif scaling.kind == "yarn":
        frequency = _yarn(frequency, head_dim, theta, scaling)
    return frequency.astype(np.float32)


def _llama3(frequency, s: RopeScaling):
    wavelength = 2 * math.pi / frequency
    smooth = (s.original_max_seq_len / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    # `smooth` is 0 for a low frequency, which is divided, and 1 for a high one, which is kept.
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * frequency / s.factor + smooth * frequency


def _yarn(frequency, head_dim: int, theta: float, s: RopeScaling):
    def dimension(turns: float) -> float:
        """The index of the pair that makes `turns` turns over the original context."""
        return head_dim * math.log(s.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # Both ends may lie beyond the last dimension. Then high < low, and every frequency is divided,
    # as in transformers.
    width = high - low or 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0.0, 1.0)
    return frequency / s.factor * ramp + frequency * (1 - ramp)


def attention_factor(scaling: RopeScaling) -> float:
    """The factor of cos and sin."""
    if scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(max(scaling.factor, 1.0)) + 1.0


def mscale(factor: float, weight: float) -> float:
    """The factor that sharpens attention in a context `factor` times longer (DeepSeek).

    weight: the model's field mscale or mscale_all_dim.
    """
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_angles(
    positions: jax.Array, head_dim: int, *, theta: float = 10_000.0, scaling: RopeScaling = RopeScaling()
) -> tuple[jax.Array, jax.Array]:
    """Returns (cos, sin), each (B, T, 1, head_dim/2); positions (B, T) int.

    The angle is float32, because bfloat16 would round it by up to 16 radians at position 4096.
    """
    return _angles(positions, frequencies(head_dim, theta, scaling), attention_factor(scaling))


def _angles(positions: jax.Array, frequency: np.ndarray, factor: float) -> tuple[jax.Array, jax.Array]:
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rope(x: jax.Array, angles: tuple[jax.Array, jax.Array], *, interleaved: bool = False) -> jax.Array:
    """Rotates x (B, T, heads, head_dim) by its positions (Su et al., arXiv:2104.09864).

    Pairs are (i, i + head_dim/2), as in Hugging Face's Llama; interleaved: (2i, 2i + 1), as in the
    paper. If the angles cover fewer dimensions than a head has, its first dimensions are rotated
    and the others are not (arXiv:2204.06745).
    """
    cos, sin = angles
    if 2 * cos.shape[-1] < x.shape[-1]:
        first, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
        return jnp.concatenate([rope(first, angles, interleaved=interleaved), rest], axis=-1)
    x32 = x.astype(jnp.float32)
    if interleaved:
        first, second = x32[..., 0::2], x32[..., 1::2]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return turned.reshape(x.shape).astype(x.dtype)
    first, second = jnp.split(x32, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def sinusoids(num: int, dim: int) -> np.ndarray:
    """Position vectors (num, dim) float32: sin(position / 10000^(2i / dim)), then cosines.

    Vaswani et al., arXiv:1706.03762, section 3.5, in Marian's order. They are computed in float64:
    in float32 the angle at position 1000 would be off by 6e-5.
    """
    angle = np.arange(num)[:, None] / 10_000.0 ** (np.arange(0, dim, 2) / dim)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
