"""How long a step takes: arithmetic, memory, and the two networks.

These are the chips' published rates and the compiler's program; for products on a TPU the compiler's own estimates, which are
longer. docs/results.md has them beside steps on a GPU and published ones on TPUs.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from bigmodel_jax.plan.program.hlo import Collective
from bigmodel_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, each as if nothing else took time.

    busy: arithmetic and HBM together, each instruction at the slower of the two; expected: with products as the compiler
    expects them. hidden: the bound: all communication beside `busy`; exposed: none of it beside `expected`. step: what the
    program's own schedule makes of that: asynchronous collectives run beside computation, the others after it.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    busy: float
    expected: float
    hidden: float
    step: float
    exposed: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))


def roofline(
    compute: float, hbm: float, busy: float, expected: float, waits: Sequence[tuple[str, bool, float]]
) -> Roofline:
    """waits: (network "ici" or "dcn", whether it is asynchronous, seconds) of each collective."""
    ici, dcn = (sum(s for network, _, s in waits if network == name) for name in ("ici", "dcn"))
    beside = max(sum(s for network, a, s in waits if a and network == name) for name in ("ici", "dcn"))
    after = sum(s for _, asynchronous, s in waits if not asynchronous)
    # The two networks are apart from each other and from the chip: each may work while the others do.
    step, exposed = max(expected, beside) + after, expected + ici + dcn
    return Roofline(compute, hbm, ici, dcn, busy, expected, max(busy, ici, dcn), step, exposed)


def seconds(one: Collective, members: Sequence[Sequence[int]], topology: Topology) -> tuple[str, float]:
    """(network, seconds) of all runs of a collective in one step; members: (slice or host, *place) of one group.

    Ring formulas (docs of XLA's collectives; "How to Scale Your Model", chapter 3): every device sends `one.sent` bytes,
    over two directions of each torus axis that its group spans and that is closed, one where it is not.
    """
    chip = topology.chip
    if chip.platform == "cuda":
        return _gpu_seconds(one, members, topology)
    if one.across or len({m[0] for m in members}) > 1:
        return "dcn", one.sent / (chip.dcn / chip.devices)
    spans = _spans([m[1:] for m in members], topology)
    if one.kind == "collective-permute":
        return "ici", one.sent / (chip.link / chip.devices)
    directions = sum(2 if closed else 1 for _, closed in spans) or 1
    rate = min(directions, chip.links) * chip.link / chip.devices
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        # Most bytes go several hops: a quarter of the longest ring on average, half of that on an open line twice.
        longest, closed = max(spans, default=(1, True))
        return "ici", one.sent / rate * max(1.0, longest / (4.0 if closed else 2.0))
    return "ici", one.sent / rate


def _spans(places: Sequence[Sequence[int]], topology: Topology) -> list[tuple[int, bool]]:
    """(extent, whether it is a closed ring) of each torus axis along which the places differ."""
    out = []
    for axis, values in enumerate(itertools.islice(zip(*places, strict=True), len(topology.shape))):
        distinct = len(set(values))
        if distinct > 1:
            out.append((distinct, distinct == topology.shape[axis] and closed(topology, axis)))
    return out


def closed(topology: Topology, axis: int) -> bool:
    """Whether the chips along this axis form a ring: v5e and v6e along 16 chips, the 3-D tori in whole cubes of 4."""
    if topology.chip.dims == 2:
        return topology.shape[axis] == 16
    return all(size % 4 == 0 for size in topology.shape)


def _gpu_seconds(one: Collective, members: Sequence[Sequence[int]], topology: Topology) -> tuple[str, float]:
    """Inside a host over NVLink; across hosts over the GPUs' network cards, every GPU of the group with its own."""
    chip = topology.chip
    hosts = len({m[0] for m in members})
    if hosts == 1:
        return "ici", one.sent / chip.link
    per_host = max(1, len(members) // hosts)
    share = (hosts - 1) / hosts * len(members) / max(len(members) - 1, 1)
    return "dcn", max(one.sent * share / (per_host * chip.dcn), one.sent / chip.link)
