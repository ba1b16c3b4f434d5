"""What the compiler is told beside a train step, by the kind of device it is for."""

import os
from typing import Any

# KiB of its fast memory (VMEM) that a TPU's program may give to one fusion. The defaults, 16 and 32 MiB of 64 to 128, cut large
# products into windows so small that operands are read over and over. More leaves less for arrays that stay there from one
# fusion to the next, and compiles longer. docs/results.md has what the compiler expects of a step with each.
SCOPED_VMEM = {"TPU v5 lite": 32768, "TPU v5": 32768, "TPU v6 lite": 98304, "TPU7x": 61440}


def compiler_options(device: Any) -> dict[str, str]:
    """Options of `jax.jit` for programs on devices of this kind; what the environment's flags say stands."""
    name = "xla_tpu_scoped_vmem_limit_kib"
    if device.device_kind not in SCOPED_VMEM or name in os.environ.get("LIBTPU_INIT_ARGS", ""):
        return {}
    return {name: str(SCOPED_VMEM[device.device_kind])}
