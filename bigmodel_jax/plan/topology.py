"""Parse machine names such as v5e:16x16, v5p:8x8x8 and h100:1x8x8, and make devices for them.

The devices exist only to compile for.
"""

import dataclasses
import functools
import importlib.util
import math
import re
from pathlib import Path

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import AXES, ParallelConfig, factor
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.plan.chips import BY_NAME, CHIPS, Chip

# Other names of chips, which error messages translate.
ALIASES = {"v5": "v5p", "v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "tpu7x", "v7x": "tpu7x"}

INSTALL = {"tpu": "uv sync --extra plan", "cuda": "uv sync --extra plan-gpu"}
CHIPS_OF_A_HOST = 4  # TPU chips per host in a slice of several hosts
MODULE = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine: `slices` slices, each with `shape` chips along its torus axes.

    For GPUs, shape is (slices, hosts, GPUs of a host), and the field `slices` is 1.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """The name that `parse` reads, without the number of slices."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def title(self) -> str:
        """The name with the number of slices, if there are several."""
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """The number of host machines. A TPU host has 4 chips."""
        if self.chip.platform == "cuda":
            return self.shape[0] * self.shape[1]
        return self.slices * math.ceil(math.prod(self.shape) / CHIPS_OF_A_HOST)

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices


def parse(name: str, slices: int = 1, option: str = "--topology") -> Topology:
    """The topology of a name such as v5e:16x16.

    Raises ValueError for an unknown name. The message names `option`, and the nearest chip or the
    expected form.
    """
    kind, _, shape = name.strip().lower().replace("=", ":").partition(":")
    known = [chip.name for chip in CHIPS]
    if kind not in BY_NAME:
        meant = f" (perhaps you meant {ALIASES[kind]!r})" if kind in ALIASES else nearest(kind, known)
        raise ValueError(f"{option} {name!r}: chip {kind!r} is unknown{meant}; known: {', '.join(known)}")
    chip = BY_NAME[kind]
    form = "SLICESxHOSTSxGPUS, such as h100:1x8x8" if chip.platform == "cuda" else "CHIPS along each axis of the torus"
    example = {2: "16x16", 3: "4x4x8"}[chip.dims]
    if not re.fullmatch(rf"\d+(x\d+){{{chip.dims - 1}}}", shape) or "0" in shape.split("x"):
        raise ValueError(f"{option} {name!r}: {kind} takes {chip.dims} numbers, {kind}:{example} for example ({form})")
    sizes = tuple(map(int, shape.split("x")))
    if slices < 1 or (slices > 1 and chip.platform == "cuda"):
        raise ValueError(
            f"--slices {slices}: it must be 1 or more; the name of a GPU topology states the slices: {kind}:{slices}x8x8"
        )
    if chip.largest and math.prod(sizes) > chip.largest:
        raise ValueError(
            f"{option} {name!r} has {math.prod(sizes):,} chips; a slice of {kind} has {chip.largest:,} at most. "
            "Several slices: --slices N"
        )
    return Topology(chip, sizes, slices)


def parse_slices(name: str) -> Topology:
    """Like `parse`, with the number of slices in front: 4xv5e:16x16."""
    several = re.fullmatch(r"(\d+)x(\D.*)", name)
    return parse(several[2], int(several[1])) if several else parse(name)


def sliced(config: Config, slices: int) -> Config:
    """The config with parallel.slices set. It is unchanged for one slice."""
    if slices == 1:
        return config
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, slices=slices))


def roomier(topology: Topology) -> Topology | None:
    """A v5p topology with as many chips as a v5e or v6e topology, for more memory; else None."""
    return Topology(BY_NAME["v5p"], (*topology.shape, 1), topology.slices) if topology.chip.dims == 2 else None


def check_mesh(parallel: ParallelConfig, topology: Topology) -> None:
    """Raise ValueError if the mesh does not multiply to the number of devices.

    The message lists the nearest meshes that do.
    """
    try:
        factor(parallel, topology.devices)
    except ValueError as error:
        fitting = "; ".join(
            " ".join(f"--parallel.{axis} {size}" for axis, size in sizes.items())
            for sizes in nearest_meshes(parallel, topology.devices)
        )
        raise ValueError(f"{error} of {topology.title}; these fit: {fitting}") from error


def nearest_meshes(parallel: ParallelConfig, devices: int, most: int = 3) -> list[dict[str, int]]:
    """Meshes that multiply to `devices`, those nearest to the given sizes first.

    Only data, fsdp and tensor change.
    """
    sizes = dict(zip(AXES, parallel.sizes(), strict=True))
    # The axes stage, expert and seq stay as they are given.
    fixed = math.prod(n for axis, n in sizes.items() if axis not in ("data", "fsdp", "tensor") and n > 0)
    left = devices // fixed if devices % fixed == 0 else devices
    found = [
        {"data": left // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}
        for tensor in divisors(min(left, 64))
        if left % tensor == 0
        for fsdp in divisors(left // tensor)
    ]

    def distance(mesh: dict[str, int]) -> float:
        # Distances are counted in doublings.
        return sum(abs(math.log2(n / max(sizes[axis], 1))) for axis, n in mesh.items())

    return sorted(found, key=distance)[:most]


def divisors(n: int) -> list[int]:
    """All divisors of n in increasing order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def check_installed(topology: Topology) -> None:
    """Raise ValueError if this platform's compiler is missing, with the command that
    installs it.
    """
    platform = topology.chip.platform
    try:
        found = importlib.util.find_spec(MODULE[platform]) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ValueError(f"{topology.name}: the {platform} compiler is not installed: {INSTALL[platform]}")


def compile_devices(topology: Topology) -> list:
    """Devices for which programs can be compiled, but which cannot run them.

    Call it only in a process that `compile.environment` prepared.
    """
    from jax.experimental import topologies

    chip = topology.chip
    if chip.platform == "cuda":
        # The first number counts NVLink domains. Here each host is one domain. Inside a domain the
        # compiler sums with its own kernels.
        slices, hosts, gpus = topology.shape
        kwargs = {"topology": f"{slices * hosts}x1x{gpus}", "target_config": target_config(chip.kind)}
        return topologies.get_topology_desc(platform="cuda", topology_name="", **kwargs).devices
    kwargs = dict(chip.options) | ({"num_slices": topology.slices} if topology.slices > 1 else {})
    if math.prod(topology.shape) == 1:  # a host with one chip; the default is a host with four
        kwargs["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **kwargs).devices


@functools.cache
def target_config(description: str) -> str:
    """The target config (a text proto) of a GPU, as stored inside the CUDA plugin.

    description: the GPU's device_description_str. Raises ValueError for an unknown one.
    """
    folder = Path(next(iter(importlib.util.find_spec("jax_plugins.xla_cuda13").submodule_search_locations)))
    data = (folder / "xla_cuda_plugin.so").read_bytes()
    found = {}
    # The plugin's binary holds target configs as text protos, each ended by a zero byte.
    for match in re.finditer(rb"(?:# [^\x00]*?\n)?gpu_device_info \{", data):
        text = data[match.start() : data.index(b"\x00", match.start())].decode("utf8", "replace")
        if name := re.search(r'device_description_str: "([^"]*)"', text):
            found[name[1]] = text
    if description not in found:
        raise ValueError(f"the CUDA plugin has no target config of {description!r}; it has: {', '.join(sorted(found))}")
    return found[description]
