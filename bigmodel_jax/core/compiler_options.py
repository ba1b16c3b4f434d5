"""XLA compiler options for train steps, by kind of device."""

import os
from typing import Any

# KiB of fast memory (VMEM) that a TPU program may give to one fusion. The defaults, 16 and 32 MiB
# of 64 to 128, cut large products into windows so small that their operands are read several times.
# A higher limit leaves less VMEM for arrays that stay there between fusions, and lengthens
# compilation. docs/results.md lists the compiler's estimates for both.
SCOPED_VMEM = {"TPU v5 lite": 32768, "TPU v5": 32768, "TPU v6 lite": 98304, "TPU7x": 61440}


def compiler_options(device: Any) -> dict[str, str]:
    """Options for `jax.jit` on this kind of device.

    A value in LIBTPU_INIT_ARGS takes precedence.
    """
    name = "xla_tpu_scoped_vmem_limit_kib"
    # A flag in the environment is the user's own choice.
    if device.device_kind not in SCOPED_VMEM or name in os.environ.get("LIBTPU_INIT_ARGS", ""):
        return {}
    return {name: str(SCOPED_VMEM[device.device_kind])}
