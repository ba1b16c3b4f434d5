"""Compiles a product for a TPU that is not here, in a process of its own; prints [seconds at the
chip's peak, seconds that the compiler states, the same without our options].

Started by the fixture `compiled_for_tpus`.
"""

import json
import sys

import jax
import jax.numpy as jnp

from bigmodel_jax.core.compiler_options import compiler_options
from bigmodel_jax.plan import topology
from bigmodel_jax.plan.program import cost
from bigmodel_jax.plan.program.instructions import Code

SIZE = 8192


def seconds(chip, device, options: dict) -> float:
    place = jax.sharding.SingleDeviceSharding(device)
    matrix = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16, sharding=place)
    text = jax.jit(jnp.matmul, compiler_options=options).lower(matrix, matrix).compile().as_text()
    return cost.measure(Code(text), chip.peak, chip.hbm_bandwidth / chip.devices, chip.clock).expected


chosen = topology.parse(sys.argv[1], 1)
device = topology.compile_devices(chosen)[0]
peak = 2 * SIZE**3 / chosen.chip.peak("bf16")
print(json.dumps([peak, *(seconds(chosen.chip, device, options) for options in (compiler_options(device), {}))]))
