"""Spikes: steps whose loss or gradient norm is far above those of the steps before (`train.spikes`).

What is far is told by the median of the last steps and by their median absolute deviation, times 1.4826 a standard
deviation where values are normal (Leys et al., 2013, 10.1016/j.jesp.2013.03.013): neither moves for a few spikes. Every
finite step enters the window, a spike too, so that a level that stays becomes the new median after half a window.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.config import SpikeConfig

DEVIATION = 1.4826  # standard deviations of a normal distribution in one median absolute deviation
SMALLEST = 0.01  # of the median: the least that counts as the spread, since equal losses have none

Recent = dict[str, jax.Array]  # values (2, window): loss and gradient norm of the last steps; count (): steps so far


def fresh(config: SpikeConfig) -> Recent | None:
    """Of a run that has taken no step; None where spikes are not looked for."""
    if config.action == "off":
        return None
    return {"values": jnp.zeros((2, config.window), jnp.float32), "count": jnp.zeros((), jnp.int32)}


def judge(config: SpikeConfig, recent: Recent, loss: jax.Array, norm: jax.Array) -> tuple[jax.Array, jax.Array, Recent]:
    """(whether this step is a spike, its deviations above the median, the window with this step).

    The deviations are the larger ones of loss and gradient norm; 0 until the window is full, as no step is judged before.
    """
    values, count = recent["values"], recent["count"]
    now = jnp.stack([loss, norm]).astype(jnp.float32)
    median = jnp.median(values, axis=1)
    spread = DEVIATION * jnp.median(jnp.abs(values - median[:, None]), axis=1)
    spread = jnp.maximum(jnp.maximum(spread, SMALLEST * jnp.abs(median)), jnp.finfo(jnp.float32).tiny)
    full = count >= config.window
    finite = jnp.isfinite(now).all()  # what is not finite is skipped anyway, and is no part of a spread
    above = jnp.where(full & finite, ((now - median) / spread).max(), 0.0)
    put = values.at[:, count % config.window].set(now)
    recent = {"values": jnp.where(finite, put, values), "count": count + finite.astype(jnp.int32)}
    return above > config.deviations, above, recent
