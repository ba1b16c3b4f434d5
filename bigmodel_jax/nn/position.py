"""Rotary position embedding."""

import jax
import jax.numpy as jnp


def rope_angles(positions: jax.Array, head_dim: int, *, theta: float = 10_000.0) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), each (B, T, 1, head_dim/2); positions (B, T) int.

    float32: at position 4096 bfloat16 would round the angle by up to 16 radians.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rope(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x (B, T, heads, head_dim) by its positions; pairs are (i, i + head_dim/2), as in Hugging Face's Llama.

    Su et al., arXiv:2104.09864.
    """
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
