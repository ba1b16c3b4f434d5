"""Published peak FLOP/s of devices, by name. MFU and `plan` read this table."""

from typing import NamedTuple


class Peak(NamedTuple):
    """The dense peak of one JAX device.

    part: a part of the device's `device_kind`. half: FLOP/s in bfloat16 and float16. single: FLOP/s
    in float32 as JAX multiplies it by default, which is TF32 on NVIDIA and one bfloat16 pass on
    TPU.
    """

    part: str
    half: float
    single: float


# The first row that matches is used, so longer names come first. A TPU v2, v3 or 7x chip is two JAX
# devices. Sources: docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm for TPU, data sheets
# for NVIDIA. Figures "with sparsity" are halved (HGX B300: 36 PFLOPS for 8 GPUs; GB300 NVL72: 360
# PFLOPS for 72).
PEAKS = (
    Peak("TPU v2", 22.5e12, 22.5e12),
    Peak("TPU v3", 61.5e12, 61.5e12),
    Peak("TPU v4", 275e12, 275e12),
    Peak("TPU v5 lite", 197e12, 197e12),
    Peak("TPU v5e", 197e12, 197e12),
    Peak("TPU v5", 459e12, 459e12),
    Peak("TPU v6 lite", 918e12, 918e12),
    Peak("TPU v6e", 918e12, 918e12),
    Peak("TPU7x", 1153.5e12, 1153.5e12),
    Peak("A100", 312e12, 156e12),
    Peak("H100 PCIe", 756.5e12, 378e12),
    Peak("H100 NVL", 835.5e12, 417.5e12),
    Peak("H200 NVL", 835.5e12, 417.5e12),
    Peak("H100", 989.4e12, 494.7e12),
    Peak("H200", 989.4e12, 494.7e12),
    Peak("GB300", 2500e12, 1250e12),
    Peak("GB200", 2500e12, 1250e12),
    Peak("B300", 2250e12, 1125e12),
    Peak("B200", 2250e12, 1125e12),
    Peak("L40S", 362e12, 183e12),
    Peak("L40", 181e12, 90.5e12),
    Peak("L4", 121e12, 60e12),
)


def find(device_kind: str) -> Peak | None:
    """The row of a device; None if the table has no peak for it."""
    return next((peak for peak in PEAKS if peak.part in device_kind), None)
