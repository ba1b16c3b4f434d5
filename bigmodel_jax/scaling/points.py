"""The points of a scaling benchmark: each is a layout on a number of devices and processes."""

import dataclasses
from typing import Literal

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import AXES, ParallelConfig, factor
from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.plan.topology import Topology, sliced

Mode = Literal["weak", "strong"]


@dataclasses.dataclass(frozen=True)
class Point:
    """One point. config: the config with the point's batch size and mesh; devices: the devices of
    all processes together."""

    layout: str
    devices: int
    processes: int
    mode: Mode
    config: Config
    topology: str = ""  # planned for this machine; "" = measured here


def parse_layout(text: str, parallel: ParallelConfig) -> ParallelConfig:
    """`parallel` with the axes of a text such as "fsdp" or "tensor=2,fsdp".

    An axis without a number takes all remaining devices. If there is none, the data axis does.
    Raises ValueError for an unknown axis or an invalid size.
    """
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, number = (piece.strip() for piece in part.partition("="))
        if axis not in AXES:
            raise ValueError(
                f"--layouts {text!r}: axis {axis!r} is unknown{nearest(axis, AXES)}; known: {', '.join(AXES)}"
            )
        if number and not (number.isdigit() and int(number)):
            raise ValueError(f"--layouts {text!r}: {axis} = {number!r}; it must be a whole number of 1 or more")
        sizes[axis] = int(number) if number else -1
    # A layout such as "tensor=2" leaves the other devices to data parallelism.
    if -1 not in sizes.values() and sizes["data"] == 1:
        sizes["data"] = -1
    return dataclasses.replace(parallel, **sizes)


def planned_points(
    config: Config, topologies: tuple[Topology, ...], layouts: tuple[str, ...], mode: Mode
) -> list[Point]:
    """Like `make_points`, for machines that do not exist here."""
    made = make_points(config, tuple(t.devices for t in topologies), layouts, mode) if topologies else []
    pairs = [(point, t) for point in made for t in topologies if t.devices == point.devices]
    return [dataclasses.replace(p, topology=t.title, config=sliced(p.config, t.slices)) for p, t in pairs]


def make_points(
    config: Config, devices: tuple[int, ...], layouts: tuple[str, ...], mode: Mode, processes: int = 1
) -> list[Point]:
    """Every layout on every number of devices.

    weak: the batch grows with the devices, and `train.batch_size` belongs to the smallest number.
    strong: the batch size stays. Raises ValueError if processes or a layout do not divide a number
    of devices.
    """
    if min(devices, default=1) < 1:
        raise ValueError(f"--devices {' '.join(map(str, devices))}: whole numbers of 1 or more are needed")
    points = []
    for layout in layouts:
        parallel = parse_layout(layout, config.parallel)
        for count in sorted(set(devices)):
            if count % min(processes, count):
                raise ValueError(f"--processes {processes} does not divide --devices {count}")
            # This call raises ValueError where the layout does not divide the number of devices.
            factor(parallel, count)
            rows = config.train.batch_size
            # Weak scaling keeps the work per device.
            if mode == "weak":
                rows = rows * count // min(devices)
            train = dataclasses.replace(config.train, batch_size=rows)
            one = dataclasses.replace(config, parallel=parallel, train=train)
            points.append(Point(layout, count, min(processes, count), mode, one))
    return points
