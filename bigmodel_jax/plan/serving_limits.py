"""Find the most slots that fit, or a change that makes a server fit, by compiling candidates."""

import dataclasses
from collections.abc import Iterator

from bigmodel_jax.config import Config
from bigmodel_jax.core.sharding import ParallelConfig
from bigmodel_jax.plan.serving import Serving
from bigmodel_jax.plan.serving_compile import Say, Server, check, compile_server
from bigmodel_jax.plan.topology import Topology

TRIES = 4  # sizes that are compiled to find the largest that fits


def largest(server: Server, topology: Topology, say: Say) -> tuple[Server, int]:
    """(the server with the most slots that fits, the fewest slots that do not fit, or 0).

    Both have been compiled.
    """
    low, high, tried = server, 0, {server.serving.slots: server.used}
    while len(tried) < TRIES and (slots := _next(low, high, tried, topology)) not in tried:
        found = compile_server(server.config, topology, dataclasses.replace(server.serving, slots=slots), say)
        tried[slots] = found.used
        if found.fits(topology):
            low = found
        else:
            high = slots
    return low, high


def _next(low: Server, high: int, tried: dict[int, float], topology: Topology) -> int:
    """The next number of slots to try, a multiple of the step and below `high`.

    It is where the line through the compiled sizes meets the memory limit.
    """
    slots, room = low.serving.slots, topology.chip.hbm - low.used
    others = [n for n in tried if n != slots]
    # At first a slot is estimated by its cache; with two compiled sizes, by their difference.
    of_a_slot = low.programs["decode"].sizes["cache"] / slots
    if others:
        near = min(others, key=lambda n: abs(n - slots))
        of_a_slot = max(of_a_slot, (tried[near] - low.used) / (near - slots))
    step = _step(low)
    # Round down to whole steps, so that the mesh divides the slots.
    guess = slots + int(room / of_a_slot) // step * step
    return max(slots, min(guess, high - step) if high else guess)


def _step(server: Server) -> int:
    """The granularity of the search: whole rows of the mesh, about an eighth of the slots."""
    mesh, slots = server.programs["decode"].mesh, server.serving.slots
    rows = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    return rows * max(1, slots // rows // 8)


# ------------------------------------------------------------ what would make it fit


def changes(server: Server, topology: Topology, say: Say) -> Iterator[dict]:
    """Single changes, each compiled, up to the first that fits.

    They are fewer slots, another mesh, narrower weights, and a shorter length.
    """
    for options, config, serving in candidates(server, topology):
        say(f"Trying {options}")
        try:
            check(config, serving, topology)
            found = compile_server(config, topology, serving, say)
        except ValueError as error:
            yield {"options": options, "fits": False, "used": 0.0, "reason": str(error)}
            continue
        yield {"options": options, "fits": found.fits(topology), "used": found.used}
        if found.fits(topology):
            return


def candidates(server: Server, topology: Topology) -> Iterator[tuple[str, Config, Serving]]:
    """(options as typed, config, serving) of each change, in the order of trial."""
    config, serving = server.config, server.serving
    sizes = server.programs["decode"].sizes
    mesh = server.programs["decode"].mesh
    rows = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    # Everything but the weights grows with the slots: the cache and the temporaries.
    of_a_slot, room = (server.used - sizes["weights"]) / serving.slots, topology.chip.hbm - sizes["weights"]
    # The first guess assumes that memory grows linearly with the slots. The second is half as much.
    for share in (0.95, 0.5):
        fewer = int(share * room / of_a_slot) // rows * rows
        if 0 < fewer < serving.slots:
            yield f"--slots {fewer}", config, dataclasses.replace(serving, slots=fewer)
    if mesh["tensor"] < topology.devices:
        parallel = ParallelConfig(data=1, tensor=topology.devices, rules=config.parallel.rules)
        options = f"--parallel.data 1 --parallel.tensor {topology.devices}"
        yield options, dataclasses.replace(config, parallel=parallel), serving
    now = serving.weights or config.precision.compute
    order = ("float32", "bfloat16", "int8", "int4")
    for weights in order[order.index(now) + 1 :] if now in order else ():
        yield f"--weights {weights}", config, dataclasses.replace(serving, weights=weights)
    if serving.length > 1024:
        length = serving.length // 2
        prompt = min(-(-serving.prompt // 2), length - 1)
        options = f"--length {length} --prompt {prompt}" if prompt else f"--length {length}"
        yield options, config, dataclasses.replace(serving, length=length, prompt=prompt)
