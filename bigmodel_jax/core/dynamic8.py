"""An 8-bit format for numbers in [-1, 1]. The exponent takes a variable number of bits.

Source: Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", arXiv:1511.04561. The
levels are those of `create_dynamic_map` in bitsandbytes. Code 127 is 0 and code 255 is 1. Every
other code has an i and a j < 2^i with |code - 127| = 2^i + j. It stands for 10^(i - 6) times the
middle of step j, where 2^i equal steps divide [0.1, 1].
"""

import jax
import jax.numpy as jnp
import numpy as np

EXPONENTS = 7  # number of powers of ten


def _levels() -> tuple[float, ...]:
    """All 256 levels in increasing order, as float32 numbers equal to those of bitsandbytes."""
    positive = []
    for i in range(EXPONENTS):
        # The edges are computed from both ends, because torch.linspace does so and rounding depends
        # on it.
        at, step = np.arange(2**i + 1), float((np.float32(1) - np.float32(0.1)) / np.float32(2**i))
        edges = np.where(at < len(at) // 2, float(np.float32(0.1)) + step * at, 1.0 - step * (2**i - at))
        edges = edges.astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        positive += [float(x) for x in np.float32(10.0 ** (i - EXPONENTS + 1)) * middles]
    return (*(-x for x in reversed(positive)), 0.0, *positive, 1.0)


LEVELS = _levels()


def decode(codes: jax.Array) -> jax.Array:
    """The float32 values of uint8 codes.

    They are computed instead of looked up, because a TPU gathers single numbers a thousand times
    slower.
    """
    signed = codes.astype(jnp.float32) - 127.0
    size = jnp.abs(signed)
    steps, power = jnp.ones_like(size), jnp.full_like(size, 10.0 ** (1 - EXPONENTS))
    for i in range(1, EXPONENTS):
        steps = jnp.where(size >= 2**i, 2.0**i, steps)
        power = jnp.where(size >= 2**i, 10.0 ** (i - EXPONENTS + 1), power)
    value = power * (0.1 + 0.9 * (size - steps + 0.5) / steps)
    value = jnp.where(size == 0, 0.0, jnp.where(size == 2**EXPONENTS, 1.0, value))
    return jnp.sign(signed) * value
