"""Spikes: steps whose loss or gradient norm is far above those of earlier steps (`train.spikes`).

The distance is measured by the median of the last steps and their median absolute deviation, which
a few spikes hardly change. For normal values 1.4826 times that deviation is a standard deviation
(Leys et al., 2013, 10.1016/j.jesp.2013.03.013). Every finite step enters the window, even a spike.
So a lasting new level becomes the median after half a window.
"""

import jax
import jax.numpy as jnp

from bigmodel_jax.config import SpikeConfig

DEVIATION = 1.4826  # a normal distribution's standard deviation in median absolute deviations
SMALLEST = 0.01  # smallest spread, as a share of the median; equal losses would have none

Recent = dict[str, jax.Array]  # values (2, window): loss and gradient norm of recent steps; count (): number of steps


def fresh(config: SpikeConfig) -> Recent | None:
    """The window before the first step; None where spikes are not looked for."""
    if config.action == "off":
        return None
    return {"values": jnp.zeros((2, config.window), jnp.float32), "count": jnp.zeros((), jnp.int32)}


def judge(config: SpikeConfig, recent: Recent, loss: jax.Array, norm: jax.Array) -> tuple[jax.Array, jax.Array, Recent]:
    """(whether this step is a spike, its deviations above the median, the new window).

    The deviations are the larger of those of loss and gradient norm. They are 0 until the window is
    full, so no step counts as a spike before that.
    """
    values, count = recent["values"], recent["count"]
    now = jnp.stack([loss, norm]).astype(jnp.float32)
    median = jnp.median(values, axis=1)
    spread = DEVIATION * jnp.median(jnp.abs(values - median[:, None]), axis=1)
    # `tiny` keeps the division below finite where the median is 0.
    spread = jnp.maximum(jnp.maximum(spread, SMALLEST * jnp.abs(median)), jnp.finfo(jnp.float32).tiny)
    full = count >= config.window
    finite = jnp.isfinite(now).all()  # other steps are skipped anyway and must not enter the window
    above = jnp.where(full & finite, ((now - median) / spread).max(), 0.0)
    # A ring buffer: the newest step overwrites the oldest one.
    put = values.at[:, count % config.window].set(now)
    recent = {"values": jnp.where(finite, put, values), "count": count + finite.astype(jnp.int32)}
    return above > config.deviations, above, recent
