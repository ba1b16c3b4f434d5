"""Peak FLOP/s and memory bandwidth of one device: from its data sheet, else measured here."""

import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigmodel_jax.plan.chips import CHIPS, Chip
from bigmodel_jax.report.throughput import peak_flops

_HALF = ("bf16", "f16")


class Rates(NamedTuple):
    """Rates of one device.

    peak: FLOP/s by operand type as printed in a program's text. bandwidth: bytes/s. source: the
    origin of both figures.
    """

    peak: Callable[[str], float]
    bandwidth: float
    source: str


def of_device(device: jax.Device) -> Rates:
    """The rates of a device."""
    if (chip := _chip(device.device_kind)) is not None:
        return Rates(chip.peak, chip.hbm_bandwidth / chip.devices, f"the data sheet of {device.device_kind}")

    @functools.cache
    def peak(dtype: str) -> float:
        return peak_flops([device], "bfloat16" if dtype in _HALF else "float32")[0]

    # Virtual CPU devices share the memory bandwidth of one machine, as they share its FLOP/s in
    # `peak_flops`.
    share = len(jax.local_devices(backend="cpu")) if device.platform == "cpu" else 1
    return Rates(peak, measured_bandwidth(device.platform) / share, "a matrix product and a copy measured here")


def _chip(kind: str) -> Chip | None:
    """The chip whose name is the longest match, so that "TPU v5 lite" is not taken for "TPU v5"."""
    return next((c for c in sorted(CHIPS, key=lambda chip: -len(chip.kind)) if c.kind in kind), None)


@functools.cache
def measured_bandwidth(platform: str, seconds: float = 0.4, size: int = 2**25) -> float:
    """Bytes/s of the fastest pass that reads and writes `size` float32 numbers.

    Passes are repeated for `seconds`.
    """
    x = jax.device_put(jnp.ones(size, jnp.float32), jax.local_devices(backend=platform)[0])
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = add(x).block_until_ready()
    # The call above has compiled the program, so the timed calls do not compile.
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        x = add(x).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * x.nbytes / best
