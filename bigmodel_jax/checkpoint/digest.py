"""A 32-bit digest per array, computed on its devices.

It is the same for every sharding and device count.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def _words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32: one word per element, or two for 8-byte types."""
    # Random keys are opaque. Their data are plain integers.
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_ or x.dtype in (jnp.int4, jnp.uint4):
        x = x.astype(jnp.int8)  # these types have no whole bytes; int8 holds all their values
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each output bit depends on each input bit (MurmurHash3's
    fmix32)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def digest(x: jax.Array) -> jax.Array:
    """The sum over all elements of mix(bits ^ hash(position)), modulo 2^32, as a uint32 scalar.

    The mixing is a bijection per element, so any change of one element changes the sum. Bits are
    mixed before they are summed, because a weighted sum of plain bits misses a lost block of
    constants: 1.0 ends in 23 zero bits. An integer sum does not depend on order, so it does not
    depend on the sharding.
    """
    words = _words(jax.device_put(x, jax.memory.Space.Device))  # an offloaded array is moved to the device
    position = jnp.zeros(words.shape, jnp.uint32)
    for dim in range(words.ndim):
        stride = math.prod(words.shape[dim + 1 :]) & 0xFFFFFFFF
        # The row-major index of each element in the whole array, whatever its sharding.
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim) * np.uint32(stride)
    return jnp.sum(_mix(words ^ (position * jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


@jax.jit
def digests(leaves: list[jax.Array]) -> jax.Array:
    """The digests (n,) uint32 of `n` arrays, by one compiled function that does not wait on the
    host."""
    found = []
    for x in leaves:
        if found:  # one array at a time: a CPU stores the mixed words, which take as much memory as the array
            x, found[-1] = jax.lax.optimization_barrier((x, found[-1]))
        found.append(digest(x))
    return jnp.stack(found)


def batch_digest(batch: dict[str, jax.Array]) -> jax.Array:
    """One uint32 digest of all arrays of a batch, in the order of their names."""
    return digest(jnp.stack([digest(batch[name]) for name in sorted(batch)]))
