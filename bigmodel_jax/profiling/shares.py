"""Wall time divided among overlapping events: the shares of a stretch of time sum to its length."""

import collections
from collections.abc import Hashable, Sequence
from typing import NamedTuple

WAITING = None  # the key of the time in which no event is active


class Event(NamedTuple):
    """One execution of an operation, in nanoseconds. container: it runs others, as a loop does its body."""

    start: float
    end: float
    name: Hashable
    container: bool = False


def divide(events: Sequence[Event], start: float, end: float) -> dict[Hashable, float]:
    """{name: nanoseconds} of the stretch from `start` to `end`.

    Each moment is divided equally among the active events that are no containers. A moment in which containers alone
    are active belongs to the one that began last, the innermost one. A moment without any event is WAITING.
    """
    inside = [(max(e.start, start), min(e.end, end), e) for e in events]
    edges = [(s, True, i, e) for i, (s, t, e) in enumerate(inside) if t > s]
    edges += [(t, False, i, e) for i, (s, t, e) in enumerate(inside) if t > s]
    shares: dict[Hashable, float] = collections.defaultdict(float)
    leaves: dict[int, Event] = {}
    containers: dict[int, Event] = {}
    now = start
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
