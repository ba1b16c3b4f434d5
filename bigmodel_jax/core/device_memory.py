"""Compares the memory that arrays need with the memory present, from shapes alone.

Nothing that could run is refused: the need counted is the least that must be in memory at once, and
the limit is all memory present.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

HOST_KINDS = ("pinned_host", "unpinned_host")


@dataclasses.dataclass(frozen=True)
class Room:
    """The memory that arrays may take.

    size: bytes; None if unknown. where: the owner of the memory, for messages. shared: whether all
    devices of the process share it.
    """

    size: int | None
    where: str
    shared: bool = False


def room(mesh: Mesh) -> Room:
    """The memory of one device of this process; on CPUs, the host memory that all of them share."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return Room(host_memory(), "this host", shared=True)
    stats = device.memory_stats() or {}
    return Room(stats.get("bytes_limit"), f"each {device.device_kind}")


def host_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory and swap that this process may use, by the host or its control group.

    root: the folder that holds `proc` and `sys`. Returns None if the size is unknown.
    """
    if sys.platform != "linux":
        return None
    sizes = dict(line.split()[:2] for line in (root / "proc/meminfo").read_text().splitlines())
    memory, swap = (1024 * int(sizes.get(name, "0")) for name in ("MemTotal:", "SwapTotal:"))
    # A container may use less memory than its host has.
    return (min(memory, *_group_limits(root)) + swap) or None


def _group_limits(root: Path) -> Iterable[int]:
    """memory.max (version 1: memory.limit_in_bytes) of the process's control group and of those
    above it."""
    yield sys.maxsize
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        # A line without controllers is cgroup version 2, which covers memory, too.
        if "memory" not in controllers.split(",") and controllers:
            continue
        version, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        group = Path(path.lstrip("/"))
        # The limit of every group above this one applies as well.
        for above in (group, *group.parents):
            limit = root / "sys/fs/cgroup" / version / above / name
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                yield int(text)


def tree_bytes(tree: Any, mesh: Mesh) -> tuple[int, int]:
    """(bytes in one device's memory, bytes in host memory) of a tree of shapes with shardings."""
    sizes = [0, 0]
    for x in jax.tree.leaves(tree):
        # Each device holds one shard of the array.
        part = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        sizes[x.sharding.memory_kind in HOST_KINDS and mesh.local_devices[0].platform != "cpu"] += part
    return sizes[0], sizes[1]


def check(what: str, tree: Any, mesh: Mesh, ways: str, *, copies: bool = True) -> None:
    """Raises ValueError, one line, if a tree of shapes with shardings does not fit in memory.

    what: the tree's name. ways: what would make it fit, in which {more} stands for "devices" or, on
    CPUs, "hosts". copies: False if devices of one host may share one copy of equal data.
    """
    found, (device, host), num = room(mesh), tree_bytes(tree, mesh), len(mesh.local_devices)
    if found.shared and not copies:
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        return refuse(what, min(device * num, whole), found, ways)
    refuse(what, device * num if found.shared else device, found, ways)
    refuse(f"{what}, the part in host memory", host * num, Room(host_memory(), "this host"), ways)


def check_step(arguments: int, temporary: int, mesh: Mesh, ways: str) -> None:
    """Raises ValueError if a compiled step does not fit; arguments, temporary: bytes on one
    device."""
    found = room(mesh)
    # CPU devices are threads of one host. They may run one after the other, and then only one of
    # them holds temporary arrays at a time.
    need = arguments * (len(mesh.local_devices) if found.shared else 1) + temporary
    refuse("the compiled step", need, found, ways)


def refuse(what: str, need: int, found: Room, ways: str) -> None:
    """Raises ValueError if `need` bytes exceed the room's size. An unknown size refuses nothing."""
    if found.size is not None and need > found.size:
        more = "hosts" if found.shared else "devices"
        raise ValueError(
            f"{what}: {size_text(need)} of memory needed, and {found.where} has {size_text(found.size)}; what helps: "
            f"{ways.format(more=more)}"
        )


def size_text(number: float) -> str:
    """A number of bytes in the unit that leaves one to four digits before the decimal point."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f} B"
