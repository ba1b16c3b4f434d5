"""A table of accelerators: peak rates, memory and links, each row with its source."""

import dataclasses
from typing import Any

from bigmodel_jax.core import peaks
from bigmodel_jax.runtime import GPU_SHARE

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator. Every rate is that of a whole chip, not of one JAX device.

    dims: how many numbers a topology's name has (2 for v5e:4x4).
    devices: JAX devices per chip.
    hbm: bytes of memory that a program may use on one device.
    kind: the device kind that JAX reports. It selects the peak rate (core/peaks.py) and the target
    of the GPU compiler.
    int8, fp8: dense FLOP/s in that type; 0 where the chip has no unit for it.
    hbm_bandwidth: bytes/s.
    link: bytes/s of one link between chips, in one direction. links: links per chip.
    dcn: bytes/s per chip out of its slice (TPU) or its host (GPU).
    largest: the most chips that a slice may have; 0 for GPUs.
    clock: cycles/s of a TPU core. The TPU compiler estimates matrix products in cycles.
    """

    name: str
    platform: str
    dims: int
    devices: int
    hbm: float
    kind: str
    int8: float
    fp8: float
    hbm_bandwidth: float
    link: float
    links: int
    dcn: float
    largest: int
    clock: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()  # options of jax's topology description
    source: str = ""
    bf16: float = dataclasses.field(init=False)  # dense FLOP/s: the sum over the devices, from core/peaks.py

    def __post_init__(self):
        # A frozen dataclass can set a derived field only in this way.
        object.__setattr__(self, "bf16", self.devices * peaks.find(self.kind).half)

    def peak(self, dtype: str) -> float:
        """FLOP/s of one device for matrix products of `dtype`.

        int8 and float8 run at the bfloat16 rate on a chip that has no unit for them.
        """
        _, half, single = peaks.find(self.kind)
        if dtype in ("f32", "float32"):
            return single
        # The rate 0 means that the chip has no such unit; the bfloat16 rate then applies.
        narrow = self.int8 if dtype in ("s8", "u8", "int8") else self.fp8 if dtype.startswith(("f8", "float8")) else 0.0
        return narrow / self.devices or half


# hbm of TPUs: the limit that the compiler (libtpu 0.0.52) states when a program is too large.
# clock of TPUs: the peak divided by the FLOPs of one cycle. One cycle uses 8 (v4, v5p) or 4 (v5e)
# matrix units of 128 x 128, or 4 units of 256 x 256 (v6e, and each core of tpu7x). The compiler's
# cycle estimates of large products agree closely with these figures.
# hbm of GPUs: the share of the device's memory that runtime.py reserves.
TPU_DOCS = "docs.cloud.google.com/tpu/docs/"
CHIPS = (
    Chip(
        "v4",
        "tpu",
        dims=3,
        devices=1,
        hbm=30.75 * GIB,
        kind="TPU v4",
        int8=275e12,
        fp8=0.0,
        hbm_bandwidth=1228e9,
        link=50e9,
        links=6,
        dcn=6.25e9,
        largest=4096,
        clock=1.05e9,
        options=(("chip_config_name", "megacore"),),
        source=TPU_DOCS + "v4: 275 TFLOPS, 1228 GB/s, 2400 Gbps ICI",
    ),
    Chip(
        "v5e",
        "tpu",
        dims=2,
        devices=1,
        hbm=15.75 * GIB,
        kind="TPU v5 lite",
        int8=393e12,
        fp8=0.0,
        hbm_bandwidth=819e9,
        link=50e9,
        links=4,
        dcn=3.125e9,
        largest=256,
        clock=1.5e9,
        source=TPU_DOCS
        + "v5e: 197 TFLOPS, 393 int8 TOPS, 819 GB/s, 400 GB/s ICI both ways, 6.4 Tbps DCN per 256 chips",
    ),
    Chip(
        "v5p",
        "tpu",
        dims=3,
        devices=1,
        hbm=95.73 * GIB,
        kind="TPU v5",
        int8=918e12,
        fp8=0.0,
        hbm_bandwidth=2765e9,
        link=100e9,
        links=6,
        dcn=6.25e9,
        largest=6144,
        clock=1.75e9,
        source=TPU_DOCS + "v5p: 459 TFLOPS, 2765 GB/s, 1200 GB/s ICI both ways, 50 Gbps DCN per chip; int8 twice bf16",
    ),
    Chip(
        "v6e",
        "tpu",
        dims=2,
        devices=1,
        hbm=31.24 * GIB,
        kind="TPU v6 lite",
        int8=1836e12,
        fp8=0.0,
        hbm_bandwidth=1638e9,
        link=100e9,
        links=4,
        dcn=12.5e9,
        largest=256,
        clock=1.75e9,
        source=TPU_DOCS + "v6e: 918 TFLOPS, 1836 int8 TOPS, 1638 GB/s, 800 GB/s ICI both ways, 100 Gbps DCN per chip",
    ),
    Chip(
        "tpu7x",
        "tpu",
        dims=3,
        devices=2,
        hbm=94.74 * GIB,
        kind="TPU7x",
        int8=0.0,
        fp8=4614e12,
        hbm_bandwidth=7380e9,
        link=100e9,
        links=6,
        dcn=12.5e9,
        largest=9216,
        clock=2.2e9,
        source=TPU_DOCS + "tpu7x: 2307 TFLOPS, 4614 fp8, 7380 GB/s, 1200 GB/s ICI both ways, 100 Gbps DCN per chip",
    ),
    Chip(
        "a100",
        "cuda",
        dims=3,
        devices=1,
        hbm=GPU_SHARE * 80 * GIB,
        kind="NVIDIA A100-SXM4-80GB",
        int8=624e12,
        fp8=0.0,
        hbm_bandwidth=2039e9,
        link=300e9,
        links=1,
        dcn=25e9,
        largest=0,
        source="A100 80GB SXM data sheet; NVLink 600 GB/s both ways; 200 Gbps network per GPU (DGX A100)",
    ),
    Chip(
        "h100",
        "cuda",
        dims=3,
        devices=1,
        hbm=GPU_SHARE * 84942979072,
        kind="NVIDIA H100 80GB HBM3",
        int8=1978.9e12,
        fp8=1978.9e12,
        hbm_bandwidth=3350e9,
        link=450e9,
        links=1,
        dcn=50e9,
        largest=0,
        source="H100 SXM data sheet, without sparsity; NVLink 900 GB/s both ways; 400 Gbps network per GPU (DGX H100)",
    ),
    Chip(
        "h200",
        "cuda",
        dims=3,
        devices=1,
        hbm=GPU_SHARE * 141e9,
        kind="NVIDIA H200",
        int8=1978.9e12,
        fp8=1978.9e12,
        hbm_bandwidth=4800e9,
        link=450e9,
        links=1,
        dcn=50e9,
        largest=0,
        source="H200 SXM data sheet, without sparsity; NVLink 900 GB/s both ways; 400 Gbps network per GPU",
    ),
    Chip(
        "b200",
        "cuda",
        dims=3,
        devices=1,
        hbm=GPU_SHARE * 180e9,
        kind="NVIDIA B200",
        int8=4500e12,
        fp8=4500e12,
        hbm_bandwidth=7700e9,
        link=900e9,
        links=1,
        dcn=50e9,
        largest=0,
        source="HGX B200 data sheet, dense; NVLink 1.8 TB/s both ways; 400 Gbps network per GPU",
    ),
)
BY_NAME = {chip.name: chip for chip in CHIPS}
