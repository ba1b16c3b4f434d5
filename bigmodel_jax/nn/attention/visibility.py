"""Which keys a query sees: by position and segment, so that packing, padding and the decode cache are one thing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.nn import kept

# A window that holds no key back.
EVERYTHING = 2**31 - 1
# Name (`checkpoint_name`) of what an implementation's gradient needs of its forward pass, beside q, k and v: remat that
# keeps it does not run the forward pass again.
KEPT = kept.ATTN


class Where(NamedTuple):
    """Where queries or keys stand: position in their document and segment (document) number, each (B, T) int32.

    A query sees the keys of its own segment at its own position and before. Segment 0 is padding. Where queries and keys
    are the same rows, positions within a segment rise by one from slot to slot: kernels count slots.
    """

    positions: jax.Array
    segments: jax.Array


class Rule(NamedTuple):
    """What is fixed when the program is traced: causal or not; window: how many positions back a query sees, its own
    included, 0 = all (arXiv:2004.05150); softcap: logits become c tanh(logits / c), 0 = no cap (arXiv:2408.00118)."""

    causal: bool = True
    window: int = 0
    softcap: float = 0.0


def reach(rule: Rule, local: jax.Array | None) -> jax.Array:
    """The window as () int32; local: () bool, whether it holds in this layer."""
    window = jnp.int32(rule.window or EVERYTHING)
    return window if local is None else jnp.where(local, window, EVERYTHING)


def visible(q_where: Where, k_where: Where, causal: bool = True, window: int | jax.Array = EVERYTHING) -> jax.Array:
    """Boolean (B, T, S): which keys a query sees."""
    mask = q_where.segments[:, :, None] == k_where.segments[:, None, :]
    distance = q_where.positions[:, :, None] - k_where.positions[:, None, :]
    if causal:
        mask &= distance >= 0
    return mask & (distance < window)


def capped(logits: jax.Array, softcap: float) -> jax.Array:
    return softcap * jnp.tanh(logits / softcap) if softcap else logits
