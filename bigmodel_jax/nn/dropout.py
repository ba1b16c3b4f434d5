"""Dropout (Srivastava et al., JMLR 15, 2014), scaled in training alone."""

import jax


def dropout(rate: float, x: jax.Array, rng: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` and divides the others by 1 - rate.

    Without `rng` it returns x.
    """
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return (x * keep / (1.0 - rate)).astype(x.dtype)
