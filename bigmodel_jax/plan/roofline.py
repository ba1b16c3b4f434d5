"""Estimate how long a step takes, from arithmetic, memory and the two networks.

The estimate combines the compiled program with the chips' published rates. For matrix products on a
TPU, and for all of a server's instructions, it takes the compiler's estimates where they are
longer. docs/results.md compares the estimate with measured steps on GPUs and published ones on
TPUs.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from bigmodel_jax.plan.compile import Compiled
from bigmodel_jax.plan.program.hlo import Collective
from bigmodel_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, by resource.

    compute, hbm, ici, dcn: each as if nothing else took time. ici is the network between chips
    (NVLink on GPUs), dcn the one between slices or hosts.
    busy: arithmetic and HBM together. Each instruction takes the longer of its two times.
    expected: like busy, with the compiler's estimates (cost.py `Cost`).
    hidden: the lower bound, where all communication overlaps with `busy`.
    exposed: no communication overlaps with `expected`.
    step: the prediction by the program's own schedule. Asynchronous collectives overlap with
    computation, the others do not.
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
        """The resource that takes longest."""
        return max(("compute", "hbm", "ici", "dcn"), key=lambda name: getattr(self, name))


def roofline(
    compute: float, hbm: float, busy: float, expected: float, waits: Sequence[tuple[str, bool, float]]
) -> Roofline:
    """Combine times of computation and communication.

    waits: (network "ici" or "dcn", whether it is asynchronous, seconds) for each collective.
    """
    ici, dcn = (sum(s for network, _, s in waits if network == name) for name in ("ici", "dcn"))
    # Both networks work at the same time, so the slower one counts.
    beside = max(sum(s for network, a, s in waits if a and network == name) for name in ("ici", "dcn"))
    after = sum(s for _, asynchronous, s in waits if not asynchronous)
    # The two networks and the chip work independently, so their times may overlap.
    step, exposed = max(expected, beside) + after, expected + ici + dcn
    return Roofline(compute, hbm, ici, dcn, busy, expected, max(busy, ici, dcn), step, exposed)


def seconds(one: Collective, members: Sequence[Sequence[int]], topology: Topology) -> tuple[str, float]:
    """(network, seconds) of all runs of a collective in one step.

    members: (slice or host, *position in the torus) of each device in one group.

    The ring formulas are those of XLA's collectives ("How to Scale Your Model", chapter 3). Every
    device sends `one.sent` bytes. Each torus axis that the group spans gives two directions if it
    is a closed ring, else one.
    """
    chip = topology.chip
    if chip.platform == "cuda":
        return _gpu_seconds(one, members, topology)
    if one.across or len({m[0] for m in members}) > 1:
        return "dcn", one.sent / (chip.dcn / chip.devices)
    spans = _spans([m[1:] for m in members], topology)
    # A permute sends over one link.
    if one.kind == "collective-permute":
        return "ici", one.sent / (chip.link / chip.devices)
    # A chip cannot use more directions than it has links.
    directions = sum(2 if closed else 1 for _, closed in spans) or 1
    rate = min(directions, chip.links) * chip.link / chip.devices
    if one.kind in ("all-to-all", "ragged-all-to-all"):
        # Most bytes travel several hops. On a closed ring the mean is a quarter of its length. On
        # an open line it is half the length.
        longest, closed = max(spans, default=(1, True))
        return "ici", one.sent / rate * max(1.0, longest / (4.0 if closed else 2.0))
    return "ici", one.sent / rate


def _spans(places: Sequence[Sequence[int]], topology: Topology) -> list[tuple[int, bool]]:
    """(extent, whether it is a closed ring) of each torus axis along which the positions differ."""
    out = []
    for axis, values in enumerate(itertools.islice(zip(*places, strict=True), len(topology.shape))):
        distinct = len(set(values))
        if distinct > 1:
            out.append((distinct, distinct == topology.shape[axis] and closed(topology, axis)))
    return out


def closed(topology: Topology, axis: int) -> bool:
    """Whether the chips along this axis form a ring.

    v5e and v6e have rings of 16 chips. The 3-D tori have rings where all sizes are multiples of 4.
    """
    if topology.chip.dims == 2:
        return topology.shape[axis] == 16
    return all(size % 4 == 0 for size in topology.shape)


def _gpu_seconds(one: Collective, members: Sequence[Sequence[int]], topology: Topology) -> tuple[str, float]:
    """(network, seconds) on GPUs: NVLink inside a host, network cards between hosts.

    Every GPU of the group uses its own network card.
    """
    chip = topology.chip
    hosts = len({m[0] for m in members})
    if hosts == 1:
        return "ici", one.sent / chip.link
    per_host = max(1, len(members) // hosts)
    # Hosts form the ring here: each host sends (h - 1) / h of the buffer over the network.
    share = (hosts - 1) / hosts * len(members) / max(len(members) - 1, 1)
    return "dcn", max(one.sent * share / (per_host * chip.dcn), one.sent / chip.link)


def line_of(compiled: Compiled, topology: Topology) -> Roofline:
    """The roofline of a compiled program on this topology."""
    chip, measured = topology.chip, compiled.program["cost"]
    compute = sum(n / chip.peak(kind) for kind, n in measured["flops"].items())
    waits = [(row["network"], row["asynchronous"], row["seconds"]) for row in compiled.program["collectives"]]
    hbm = measured["bytes"] / (chip.hbm_bandwidth / chip.devices)
    return roofline(compute, hbm, measured["busy"], measured["expected"], waits)
