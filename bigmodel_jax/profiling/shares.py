"""Divide wall time among overlapping events, so that the shares sum to the whole time."""

import collections
from collections.abc import Hashable, Sequence
from typing import NamedTuple

WAITING = None  # the key of the time in which no event is active


class Event(NamedTuple):
    """One execution of an operation; times in nanoseconds.

    container: whether it runs other operations, as a loop runs its body.
    """

    start: float
    end: float
    name: Hashable
    container: bool = False


def divide(events: Sequence[Event], start: float, end: float) -> dict[Hashable, float]:
    """{name: nanoseconds} between `start` and `end`.

    Each moment is divided equally among the active events that are not containers. A moment in
    which only containers are active goes to the one that began last, which is the innermost. A
    moment without any event is WAITING.
    """
    # Clip every event to the stretch, then sweep over all begins and ends in order of time.
    inside = [(max(e.start, start), min(e.end, end), e) for e in events]
    edges = [(s, True, i, e) for i, (s, t, e) in enumerate(inside) if t > s]
    edges += [(t, False, i, e) for i, (s, t, e) in enumerate(inside) if t > s]
    shares: dict[Hashable, float] = collections.defaultdict(float)
    leaves: dict[int, Event] = {}
    containers: dict[int, Event] = {}
    now = start
    # At equal times ends come before begins, so events that touch never overlap.
    for at, begins, i, event in sorted(edges, key=lambda edge: edge[:3]):
        _give(shares, at - now, leaves, containers)
        now = at
        active = containers if event.container else leaves
        if begins:
            active[i] = event
        else:
            del active[i]
    _give(shares, end - now, leaves, containers)
    return dict(shares)


def _give(shares: dict, length: float, leaves: dict[int, Event], containers: dict[int, Event]) -> None:
    if length <= 0:
        return
    if leaves:
        for event in leaves.values():
            shares[event.name] += length / len(leaves)
    elif containers:
        shares[max(containers.values(), key=lambda event: event.start).name] += length
    else:
        shares[WAITING] += length
