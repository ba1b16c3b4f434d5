"""Make profile.json: time of the profiled steps by kind, module, pass and operation.

Each row also has its roofline time.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

from bigmodel_jax.profiling import shares
from bigmodel_jax.profiling.operations import KINDS, OTHER_PROGRAMS, WAITING, Operation
from bigmodel_jax.profiling.trace import Executed, Trace

TOP = 25  # how many operations are listed


def make(trace: Trace, programs: Sequence[tuple[str, dict[str, Operation]]], steps: int) -> dict[str, Any]:
    """The content of profile.json.

    All times are seconds of one step. Those of each table sum to `step_seconds`.

    programs: (name, operations) of each program that a step may run. Two programs of one name are
    told apart by their operations. steps: how many steps the trace holds.
    """
    known = _by_number(trace.executed, programs)
    events = [_event(one, known) for one in trace.executed]
    wall = (trace.end - trace.start) * 1e-9
    found = shares.divide(events, trace.start, trace.end)
    scale = 1e-9 / steps
    rows = [(key, known[key[0]][key[1]] if key and key[0] in known else None, ns * scale) for key, ns in found.items()]
    main = programs[0][1]
    missing = sum(1 for one in main.values() if one.seconds is None)
    return {
        "steps": steps,
        "device": trace.device,
        "step_seconds": wall / steps,
        "kinds": _table(rows, main, _kind, KINDS),
        "modules": _table(rows, main, lambda key, one: one.module if one else _kind(key, one)),
        "passes": _table(rows, main, lambda key, one: one.phase if one else _kind(key, one)),
        "operations": _operations(rows),
        "runs": _runs(trace, {name for name, _ in programs}),
        "roofline_seconds": None if missing else sum(one.seconds for one in main.values()),
        "flops": sum(one.flops for one in main.values()),
        "bytes": sum(one.bytes for one in main.values()),
    }


def _by_number(executed: Sequence[Executed], programs) -> dict[tuple[str, int], dict[str, Operation]]:
    """{(program's name, its number in the trace): its operations}.

    Among programs of one name, the one that shares the most operations with the trace is taken.
    """
    seen: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for one in executed:
        seen[one.program, one.number].add(one.op)
    found = {}
    for key, ops in seen.items():
        texts = [operations for name, operations in programs if name == key[0]]
        if texts:
            found[key] = max(texts, key=lambda text: len(ops & text.keys()))
    return found


def _event(one: Executed, known: dict) -> shares.Event:
    text = known.get((one.program, one.number))
    operation = text.get(one.op) if text is not None else None
    if operation is None:
        return shares.Event(one.start, one.end, (None, one.program or one.op))
    return shares.Event(one.start, one.end, ((one.program, one.number), one.op), operation.container)


def _kind(key: tuple | None, one: Operation | None) -> str:
    return WAITING if key is shares.WAITING else one.kind if one else OTHER_PROGRAMS


def _table(rows, main: dict[str, Operation], name: Callable, order: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of {"name", "seconds", "roofline"}, in `order`, else the longest first.

    The roofline is None where the program does not allow a prediction.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    least: dict[str, float] = collections.defaultdict(float)
    unknown = set()
    for key, one, time in rows:
        seconds[name(key, one)] += time
    for one in main.values():
        if one.seconds is None:
            unknown.add(name((), one))
        elif one.seconds:
            least[name((), one)] += one.seconds
    names = sorted(seconds, key=lambda n: order.index(n) if order else -seconds[n])
    return [{"name": n, "seconds": seconds[n], "roofline": None if n in unknown else least.get(n)} for n in names]


def _operations(rows) -> list[dict[str, Any]]:
    known = [(key, one, time) for key, one, time in rows if one]
    return [
        {
            "name": key[1],
            "operation": one.label,
            "kind": one.kind,
            "module": one.module,
            "pass": one.phase,
            "source": one.source,
            "seconds": time,
            # A time of 0, as of a collective, means that there is no prediction.
            "roofline": one.seconds or None,
        }
        for key, one, time in sorted(known, key=lambda row: -row[2])[:TOP]
    ]


def _runs(trace: Trace, names: set[str]) -> list[float]:
    """Seconds of each run of a step's program on the device, from its first operation
    to its last.
    """
    spans: dict[tuple, list[float]] = {}
    for one in trace.executed:
        if one.program in names and trace.start <= one.start <= trace.end:
            span = spans.setdefault((one.number, one.run), [one.start, one.end])
            span[0], span[1] = min(span[0], one.start), max(span[1], one.end)
    return [(end - start) * 1e-9 for start, end in sorted(spans.values())]
