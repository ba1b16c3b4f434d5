"""Which keys a query sees, by position and segment.

Position and segment suffice for packing, padding and the decode cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.nn import kept

# A window that hides no key.
EVERYTHING = 2**31 - 1
# The `checkpoint_name` of the arrays that a gradient needs besides q, k and v. If a remat
# policy keeps these arrays, the backward pass does not compute attention again.
KEPT = kept.ATTN


class Where(NamedTuple):
    """Where queries or keys stand: position in their document, and segment (document) id.

    Both are (B, T) int32. A query sees the keys of its own segment at its own position and before.
    Segment 0 is padding. If queries and keys are the same rows, positions within a segment increase
    by one per slot, because kernels compare slots.
    """

    positions: jax.Array
    segments: jax.Array


class Rule(NamedTuple):
    """The parts of a mask that are fixed when the program is traced.

    causal: whether a query sees no later position. window: the number of positions that a query
    sees on each side, its own included, 0 = all (arXiv:2004.05150). softcap: logits become c
    tanh(logits / c), 0 = no cap (arXiv:2408.00118).
    """

    causal: bool = True
    window: int = 0
    softcap: float = 0.0


def reach(rule: Rule, local: jax.Array | None) -> jax.Array:
    """The window as () int32; local: () bool, whether this layer has the window."""
    window = jnp.int32(rule.window or EVERYTHING)
    return window if local is None else jnp.where(local, window, EVERYTHING)


def visible(q_where: Where, k_where: Where, causal: bool = True, window: int | jax.Array = EVERYTHING) -> jax.Array:
    """Returns (B, T, S) bool: which keys each query sees."""
    mask = q_where.segments[:, :, None] == k_where.segments[:, None, :]
    distance = q_where.positions[:, :, None] - k_where.positions[:, None, :]
    mask &= distance >= 0 if causal else -distance < window
    return mask & (distance < window)


def capped(logits: jax.Array, softcap: float) -> jax.Array:
    """softcap tanh(logits / softcap), which bounds the logits.

    They are unchanged if softcap is 0.
    """
    return softcap * jnp.tanh(logits / softcap) if softcap else logits
