"""The collectives of a compiled step: what each moves, how often, between whom."""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2}
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


class Collective(NamedTuple):
    """shapes: of its results on one device; times: a step runs it; groups: of devices that exchange (of a permute, pairs)."""

    kind: str
    shapes: list[tuple[int, ...]]
    num_bytes: int
    times: int
    groups: tuple[tuple[int, ...], ...]


def collectives(text: str) -> list[Collective]:
    computations, entry = _computations(text)
    times = collections.Counter({entry: 1})
    for name in _callers_first(computations, entry):
        for line in computations[name]:
            for callee, runs in _calls(line, computations):
                times[callee] += times[name] * runs
    found = []
    for name, lines in computations.items():
        for line in lines:
            match = re.search(rf"= (\(.*?\)|\S+) ({KINDS})(?:-start)?\(", line)
            if match:
                arrays = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
                shapes = [tuple(int(n) for n in dims.split(",") if n) for _, dims in arrays]
                num_bytes = sum(BYTES[t] * math.prod(s) for (t, _), s in zip(arrays, shapes, strict=True))
                found.append(Collective(match[2], shapes, num_bytes, times[name], _groups(line)))
    return found


def _computations(text):
    out, entry, current = {}, None, []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = out[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            current.append(line)
    return out, entry


def _calls(line, computations):
    """(computation, how often) for everything that a line runs."""
    body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
    if body:
        return [(body[1], int(re.search(r'known_trip_count":\{"n":"(\d+)"', line)[1]))]
    callees = re.findall(r"(?:calls|to_apply|branch_computations)=(\{.*?\}|%?[\w.\-]+)", line)
    names = [name for group in callees for name in re.findall(r"[\w.\-]+", group)]
    return [(name, 1) for name in names if name in computations]


def _callers_first(computations, entry):
    order, seen = [], set()

    def visit(name):
        if name not in seen:
            seen.add(name)
            for line in computations[name]:
                for callee, _ in _calls(line, computations):
                    visit(callee)
            order.append(name)

    visit(entry)
    return reversed(order)


def _groups(line):
    """Groups of device numbers; the text has them as a list, as a permutation of a grid, or by axes of a mesh."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
    if listed:
        return tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1]))
    grid = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if grid:
        dims = [int(n) for n in grid[3].split(",")]
        order = [int(n) for n in grid[4].split(",")] if grid[4] else range(len(dims))
        numbers = np.arange(math.prod(dims)).reshape(dims).transpose(order)
        return tuple(map(tuple, numbers.reshape(int(grid[1]), int(grid[2])).tolist()))
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line)
    assert mesh, f"groups not understood: {line}"
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    named = re.findall(r"'(\w+)'", mesh[3])
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    axes = [list(sizes).index(name) for name in named]
    size = math.prod(sizes[name] for name in named)
    return tuple(map(tuple, np.moveaxis(numbers, axes, range(-len(axes), 0)).reshape(-1, size).tolist()))
