"""Compiles a product for TPUs that are not here, in a process of its own; prints {topology:
[seconds at the chip's peak, seconds that the compiler states, the same without our options]}.

Started by the fixture `compiled_for_tpus`.
"""

import json

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


found = {}
for name in ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"):
    chosen = topology.parse(name, 1)
    device = topology.compile_devices(chosen)[0]
    peak = 2 * SIZE**3 / chosen.chip.peak("bf16")
    found[name] = [peak, *(seconds(chosen.chip, device, options) for options in (compiler_options(device), {}))]
print(json.dumps(found))
