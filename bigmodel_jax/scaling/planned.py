"""Plans one point of a scaling benchmark whose devices do not exist here, with their compiler."""

from typing import Any

from bigmodel_jax.plan import estimate
from bigmodel_jax.plan.compile import compile_step
from bigmodel_jax.plan.topology import Topology
from bigmodel_jax.scaling.points import Point


def plan_point(point: Point, topology: Topology) -> dict[str, Any]:
    """The record of a point, from its compiled program and the chips' published rates.

    Raises RuntimeError, one line, if the program does not fit the chips' memory.
    """
    compiled = compile_step(point.config, topology)
    if not compiled.memory or estimate.used_bytes(compiled) > topology.chip.hbm:
        raise RuntimeError(f"{point.layout} on {topology.title}: does not fit; launch.py plan says why")
    prices = estimate.read_prices(estimate.PRICES, topology)
    found = estimate.seen(point.config, topology, compiled, 0.0, prices)
    moved: dict[str, float] = {}
    for row in found["collectives"]:
        # One collective may span several axes, and its bytes belong to all of them together.
        name = " x ".join(row["axes"]) or "all"
        moved[name] = moved.get(name, 0.0) + row["sent"]
    return {
        "device_kind": topology.chip.name,
        "topology": topology.title,
        "mesh": {axis: size for axis, size in compiled.mesh.items() if size > 1},
        "batch_size": point.config.train.batch_size,
        "unit": "tokens",
        "step_seconds": found["step_seconds"],
        "tokens_per_second": found["tokens_per_second"],
        "mfu": found["mfu"],
        "bound": found["roofline"]["bound"].upper().replace("COMPUTE", "arithmetic"),
        "memory_bytes": estimate.used_bytes(compiled),
        "bytes_by_axis": moved,
        "compile_seconds": compiled.compile_seconds,
    }
