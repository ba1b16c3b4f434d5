"""Machines by name: v5e:16x16, v5p:8x8x8, h100:1x8x8. What their chips can do, and devices to compile for."""

import dataclasses
import functools
import importlib.util
import math
import re
from pathlib import Path
from typing import Any

from bigmodel_jax.config import nearest
from bigmodel_jax.core.sharding import AXES, ParallelConfig, factor

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; every rate is of a whole chip.

    dims: numbers in a topology's name. devices: JAX devices per chip. hbm: bytes that a program may use on one device.
    bf16, int8, fp8: dense FLOP/s (0: no such unit). hbm_bandwidth: bytes/s. link: bytes/s of one link between chips, one
    way; links: how many a chip has. dcn: bytes/s per chip out of its slice (TPU) or its host (GPU). largest: chips that
    a slice may have.
    """

    name: str
    platform: str
    dims: int
    devices: int
    hbm: float
    bf16: float
    int8: float
    fp8: float
    hbm_bandwidth: float
    link: float
    links: int
    dcn: float
    largest: int
    options: tuple[tuple[str, Any], ...] = ()  # of the topology's description
    target: str = ""  # device_description_str of the GPU's target config
    source: str = ""

    def peak(self, dtype: str) -> float:
        """FLOP/s of one device for products of this type; int8 and float8 only where there is a unit for them.

        float32 as JAX multiplies it by default: one pass in bfloat16 on a TPU, TF32 at half that rate on a GPU.
        """
        if dtype in ("f32", "float32") and self.platform == "cuda":
            return self.bf16 / 2 / self.devices
        narrow = self.int8 if dtype in ("s8", "u8", "int8") else self.fp8 if dtype.startswith(("f8", "float8")) else 0.0
        return (narrow or self.bf16) / self.devices


# hbm of TPUs is what the compiler itself allows (read from its message where a program is too large): libtpu 0.0.52.
# hbm of GPUs is 92 % of the device's memory, as XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives it; JAX's default is 75 %.
TPU_DOCS = "docs.cloud.google.com/tpu/docs/"
CHIPS = (
    Chip(
        "v4",
        "tpu",
        dims=3,
        devices=1,
        hbm=30.75 * GIB,
        bf16=275e12,
        int8=275e12,
        fp8=0.0,
        hbm_bandwidth=1228e9,
        link=50e9,
        links=6,
        dcn=6.25e9,
        largest=4096,
        options=(("chip_config_name", "megacore"),),
        source=TPU_DOCS + "v4: 275 TFLOPS, 1228 GB/s, 2400 Gbps ICI",
    ),
    Chip(
        "v5e",
        "tpu",
        dims=2,
        devices=1,
        hbm=15.75 * GIB,
        bf16=197e12,
        int8=393e12,
        fp8=0.0,
        hbm_bandwidth=819e9,
        link=50e9,
        links=4,
        dcn=3.125e9,
        largest=256,
        source=TPU_DOCS
        + "v5e: 197 TFLOPS, 393 int8 TOPS, 819 GB/s, 400 GB/s ICI both ways, 6.4 Tbps DCN per 256 chips",
    ),
    Chip(
        "v5p",
        "tpu",
        dims=3,
        devices=1,
        hbm=95.73 * GIB,
        bf16=459e12,
        int8=918e12,
        fp8=0.0,
        hbm_bandwidth=2765e9,
        link=100e9,
        links=6,
        dcn=6.25e9,
        largest=6144,
        source=TPU_DOCS + "v5p: 459 TFLOPS, 2765 GB/s, 1200 GB/s ICI both ways, 50 Gbps DCN per chip; int8 twice bf16",
    ),
    Chip(
        "v6e",
        "tpu",
        dims=2,
        devices=1,
        hbm=31.24 * GIB,
        bf16=918e12,
        int8=1836e12,
        fp8=0.0,
        hbm_bandwidth=1638e9,
        link=100e9,
        links=4,
        dcn=12.5e9,
        largest=256,
        source=TPU_DOCS + "v6e: 918 TFLOPS, 1836 int8 TOPS, 1638 GB/s, 800 GB/s ICI both ways, 100 Gbps DCN per chip",
    ),
    Chip(
        "tpu7x",
        "tpu",
        dims=3,
        devices=2,
        hbm=94.74 * GIB,
        bf16=2307e12,
        int8=0.0,
        fp8=4614e12,
        hbm_bandwidth=7380e9,
        link=100e9,
        links=6,
        dcn=12.5e9,
        largest=9216,
        source=TPU_DOCS + "tpu7x: 2307 TFLOPS, 4614 fp8, 7380 GB/s, 1200 GB/s ICI both ways, 100 Gbps DCN per chip",
    ),
    Chip(
        "a100",
        "cuda",
        dims=3,
        devices=1,
        hbm=0.92 * 80 * GIB,
        bf16=312e12,
        int8=624e12,
        fp8=0.0,
        hbm_bandwidth=2039e9,
        link=300e9,
        links=1,
        dcn=25e9,
        largest=0,
        target="NVIDIA A100-SXM4-80GB",
        source="A100 80GB SXM data sheet; NVLink 600 GB/s both ways; 200 Gbps network per GPU (DGX A100)",
    ),
    Chip(
        "h100",
        "cuda",
        dims=3,
        devices=1,
        hbm=0.92 * 84942979072,
        bf16=989.4e12,
        int8=1978.9e12,
        fp8=1978.9e12,
        hbm_bandwidth=3350e9,
        link=450e9,
        links=1,
        dcn=50e9,
        largest=0,
        target="NVIDIA H100 80GB HBM3",
        source="H100 SXM data sheet, without sparsity; NVLink 900 GB/s both ways; 400 Gbps network per GPU (DGX H100)",
    ),
    Chip(
        "h200",
        "cuda",
        dims=3,
        devices=1,
        hbm=0.92 * 141e9,
        bf16=989.4e12,
        int8=1978.9e12,
        fp8=1978.9e12,
        hbm_bandwidth=4800e9,
        link=450e9,
        links=1,
        dcn=50e9,
        largest=0,
        target="NVIDIA H200",
        source="H200 SXM data sheet, without sparsity; NVLink 900 GB/s both ways; 400 Gbps network per GPU",
    ),
    Chip(
        "b200",
        "cuda",
        dims=3,
        devices=1,
        hbm=0.92 * 180e9,
        bf16=2250e12,
        int8=4500e12,
        fp8=4500e12,
        hbm_bandwidth=7700e9,
        link=900e9,
        links=1,
        dcn=50e9,
        largest=0,
        target="NVIDIA B200",
        source="HGX B200 data sheet, dense; NVLink 1.8 TB/s both ways; 400 Gbps network per GPU",
    ),
)
BY_NAME = {chip.name: chip for chip in CHIPS}
ALIASES = {"v5": "v5p", "v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "tpu7x", "v7x": "tpu7x"}

INSTALL = {"tpu": "uv sync --extra plan", "cuda": "uv sync --extra plan-gpu"}
MODULE = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of `shape` chips each; of GPUs: shape is slices x hosts x GPUs of a host, and `slices` is 1."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def title(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as v5e:16x16; ValueError with the nearest chip, or the form that is expected."""
    kind, _, shape = name.strip().lower().replace("=", ":").partition(":")
    known = [chip.name for chip in CHIPS]
    if kind not in BY_NAME:
        meant = f" (perhaps you meant {ALIASES[kind]!r})" if kind in ALIASES else nearest(kind, known)
        raise ValueError(f"--topology {name!r}: chip {kind!r} is unknown{meant}; known: {', '.join(known)}")
    chip = BY_NAME[kind]
    form = "SLICESxHOSTSxGPUS, such as h100:1x8x8" if chip.platform == "cuda" else "CHIPS along each axis of the torus"
    example = {2: "16x16", 3: "4x4x8"}[chip.dims]
    if not re.fullmatch(rf"\d+(x\d+){{{chip.dims - 1}}}", shape) or "0" in shape.split("x"):
        raise ValueError(
            f"--topology {name!r}: {kind} takes {chip.dims} numbers, {kind}:{example} for example ({form})"
        )
    sizes = tuple(map(int, shape.split("x")))
    if slices < 1 or (slices > 1 and chip.platform == "cuda"):
        raise ValueError(f"--slices {slices}: 1 or more, and for GPUs part of the name: {kind}:{slices}x8x8")
    if chip.largest and math.prod(sizes) > chip.largest:
        raise ValueError(
            f"--topology {name!r} has {math.prod(sizes):,} chips; a slice of {kind} has {chip.largest:,} at most. "
            "Several slices: --slices N"
        )
    return Topology(chip, sizes, slices)


def check_mesh(parallel: ParallelConfig, topology: Topology) -> None:
    """ValueError where the mesh does not make up the devices, with what the first free axis would have to be."""
    try:
        factor(parallel, topology.devices)
    except ValueError as error:
        fitting = "; ".join(
            " ".join(f"--parallel.{axis} {size}" for axis, size in sizes.items())
            for sizes in nearest_meshes(parallel, topology.devices)
        )
        raise ValueError(f"{error} of {topology.title}; these fit: {fitting}") from error


def nearest_meshes(parallel: ParallelConfig, devices: int, most: int = 3) -> list[dict[str, int]]:
    """Meshes that make up the devices, those that change the given sizes least first."""
    sizes = dict(zip(AXES, parallel.sizes(), strict=True))
    fixed = math.prod(n for axis, n in sizes.items() if axis not in ("data", "fsdp", "tensor") and n > 0)
    left = devices // fixed if devices % fixed == 0 else devices
    found = [
        {"data": left // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
        for tensor in divisors(min(left, 64))
        if left % tensor == 0
        for fsdp in divisors(left // tensor)
    ]

    def distance(mesh: dict[str, int]) -> float:
        return sum(abs(math.log2(n / max(sizes[axis], 1))) for axis, n in mesh.items())

    return sorted(found, key=distance)[:most]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def check_installed(topology: Topology) -> None:
    """ValueError with the one command that installs the compiler of this platform, where it is missing."""
    platform = topology.chip.platform
    try:
        found = importlib.util.find_spec(MODULE[platform]) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ValueError(
            f"--topology {topology.name}: the {platform} compiler is not installed; install it with: {INSTALL[platform]}"
        )


def compile_devices(topology: Topology) -> list:
    """Devices that programs can be compiled for and not run on. Only in a process that `process.environment` started."""
    from jax.experimental import topologies

    chip = topology.chip
    if chip.platform == "cuda":
        kwargs = {"topology": "x".join(map(str, topology.shape)), "target_config": target_config(chip.target)}
        return topologies.get_topology_desc(platform="cuda", topology_name="", **kwargs).devices
    kwargs = dict(chip.options) | ({"num_slices": topology.slices} if topology.slices > 1 else {})
    if math.prod(topology.shape) == 1:  # a host of one chip; by default a host has four
        kwargs["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **kwargs).devices


@functools.cache
def target_config(description: str) -> str:
    """The target config (a text proto) that the CUDA plugin holds of a GPU, by its device_description_str."""
    folder = Path(next(iter(importlib.util.find_spec("jax_plugins.xla_cuda13").submodule_search_locations)))
    data = (folder / "xla_cuda_plugin.so").read_bytes()
    found = {}
    for match in re.finditer(rb"(?:# [^\x00]*?\n)?gpu_device_info \{", data):
        text = data[match.start() : data.index(b"\x00", match.start())].decode("utf8", "replace")
        if name := re.search(r'device_description_str: "([^"]*)"', text):
            found[name[1]] = text
    if description not in found:
        raise ValueError(f"the CUDA plugin has no target config of {description!r}; it has: {', '.join(sorted(found))}")
    return found[description]
