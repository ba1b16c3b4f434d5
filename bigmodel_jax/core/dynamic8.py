"""A number format of 8 bits for numbers in [-1, 1]: a dynamic exponent, and a fraction with the bits that are left.

Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", arXiv:1511.04561; the map of bitsandbytes, its
`create_dynamic_map`. Code 127 is 0; |code - 127| = 2^i + j, with j below 2^i, stands for 10^(i - 6) times the middle of
step j of the 2^i equal steps between 0.1 and 1; code 255 is 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

EXPONENTS = 7


def _levels() -> tuple[float, ...]:
    """All 256 in increasing order: the float32 numbers of bitsandbytes, which rounds each step as torch.linspace does."""
    positive = []
    for i in range(EXPONENTS):
        at, step = np.arange(2**i + 1), float((np.float32(1) - np.float32(0.1)) / np.float32(2**i))
        edges = np.where(at < len(at) // 2, float(np.float32(0.1)) + step * at, 1.0 - step * (2**i - at))
        edges = edges.astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        positive += [float(x) for x in np.float32(10.0 ** (i - EXPONENTS + 1)) * middles]
    return (*(-x for x in reversed(positive)), 0.0, *positive, 1.0)


LEVELS = _levels()


def decode(codes: jax.Array) -> jax.Array:
    """float32 of codes in uint8, by arithmetic: a TPU gathers single numbers a thousand times slower."""
    signed = codes.astype(jnp.float32) - 127.0
    size = jnp.abs(signed)
    steps, power = jnp.ones_like(size), jnp.full_like(size, 10.0 ** (1 - EXPONENTS))
    for i in range(1, EXPONENTS):
        steps = jnp.where(size >= 2**i, 2.0**i, steps)
        power = jnp.where(size >= 2**i, 10.0 ** (i - EXPONENTS + 1), power)
    value = power * (0.1 + 0.9 * (size - steps + 0.5) / steps)
    value = jnp.where(size == 0, 0.0, jnp.where(size == 2**EXPONENTS, 1.0, value))
    return jnp.sign(signed) * value
