"""Read which collectives a compiled program runs from its text, for TPU, GPU and CPU.

    found = collectives(compiled.as_text(), mesh)  # list[Collective] in the order of the text
    by_axes(found)  # {("fsdp",): bytes that a device sends in one run, ...}

The text hides some collectives:
- A TPU prints a reduce-scatter as a fusion that calls `%all-reduce-scatter*`, which holds an
  all-reduce and a slice.
- An overlapped collective appears as a start, steps and an end that share one channel.
- A loop body is printed once. Its trip count may stand only in the loop's condition.
- Slices exchange data by a send and a recv, not by a collective.
- A TPU's all-gather along a whole torus may be an all-reduce of a buffer that is zero elsewhere.
"""

import collections
import dataclasses
import math
import re

import numpy as np
from jax.sharding import Mesh

from bigmodel_jax.plan.program.program import Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BY_HAND = 1  # JAX gives all collectives of a `shard_map` this channel, so it identifies none
BITS = {"pred": 8, "bf16": 16, "token": 0} | {f"c{n}": n for n in (64, 128)}

_SHAPE = re.compile(r"\b(pred|token|[subfc]\d+\w*|bf16)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"^(?:ROOT )?%?\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SEND = re.compile(r"^(?:ROOT )?%?\S+ = (.*?) send\(")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program.

    kind: one of KINDS.
    bytes: size of the whole buffer on one device. It is the output of an all-gather, the input of a
    reduce-scatter or all-reduce, or what any other kind sends.
    axes: mesh axes that its groups span, without axes of size 1, in mesh order.
    members: positions in the mesh of the devices of one group.
    count: how often one run of the program runs it. A conditional counts its longest branch.
    channel: XLA's channel number, if it has one.
    shapes: such as ("f32[16,64]",); several where the compiler has merged collectives.
    source: the JAX operation and its source line.
    across: whether it crosses slices, over the data-centre network.
    """

    kind: str
    bytes: int
    axes: tuple[str, ...]
    members: tuple[int, ...]
    count: int
    channel: int | None
    shapes: tuple[str, ...]
    source: str
    across: bool = False

    @property
    def group(self) -> int:
        """How many devices exchange data with one another."""
        return len(self.members)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one run of the program, by the ring algorithm.

        An all-reduce sends twice as much as a reduce-scatter of the same buffer.
        """
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.count * self.bytes)
        return self.count * self.bytes * (self.group - 1) / self.group * (2 if self.kind == "all-reduce" else 1)


def by_axes(found: list[Collective], value=lambda c: c.sent) -> dict[tuple[str, ...], float]:
    """The sum of `value` over the collectives of each tuple of mesh axes."""
    out: dict[tuple[str, ...], float] = collections.defaultdict(float)
    for c in found:
        out[c.axes] += value(c)
    return dict(out)


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Every collective of `compiled.as_text()`, once each.

    The program must be compiled for all devices of `mesh`.
    """
    program = Program(text)
    found, seen = [], set()
    for name, lines in program.computations.items():
        times = program.times(name)
        for line in lines if times else ():
            one = _inside(line, name, program, mesh) or _between_slices(line, name, program, mesh)
            # A start, its steps and its end share one channel and count once. Where the channel
            # identifies nothing, the line does.
            key = one and (one.kind, program.owner(name), line if one.channel in (None, BY_HAND) else one.channel)
            if one and key not in seen:
                seen.add(key)
                found.append(one)
    return found


def _inside(line: str, computation: str, program: Program, mesh: Mesh) -> Collective | None:
    match = _COLLECTIVE.match(line)
    if match is None:
        return None
    result, kind, start = match.groups()
    groups = device_groups(line, members(program, mesh))
    shapes = _results(result, kind, bool(start))
    total = sum(map(num_bytes, shapes))
    if kind == "reduce-scatter":
        total *= len(groups[0])  # the text prints one shard of the buffer
    elif kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # on a TPU this computation holds an all-reduce of the whole buffer
    return Collective(
        kind=kind,
        bytes=total,
        axes=spanned(groups, mesh),
        members=tuple(groups[0]),
        count=program.times(computation),
        channel=_channel(line),
        shapes=shapes,
        source=program.source(line, computation),
    )


def _between_slices(line: str, computation: str, program: Program, mesh: Mesh) -> Collective | None:
    """A transfer between the devices at the same place of each slice.

    XLA prints it as a send, whose attributes name the kind of collective.
    """
    match = _SEND.match(line)
    kind = match and re.search(r'_xla_megascale_transfer_type="?(\w+)', line)
    if not kind:
        return None
    shape = _SHAPE.search(match[1])[0]
    kind = kind[1].lower().replace("_", "-")
    groups = list(zip(*slices_of(mesh), strict=True))
    return Collective(
        kind=kind,
        bytes=num_bytes(shape) * (len(groups[0]) if kind == "all-gather" else 1),  # an all-gather prints its own shard
        axes=spanned(groups, mesh),
        members=groups[0],
        count=program.times(computation),
        channel=_channel(line),
        shapes=(shape,),
        source=program.source(line, computation),
        across=True,
    )


def _channel(line: str) -> int | None:
    found = re.search(r"channel_id=(\d+)", line)
    return int(found[1]) if found else None


# ------------------------------------------------------------ shapes


def _shapes(text: str) -> list[str]:
    return [match[0] for match in _SHAPE.finditer(text)]


def num_bytes(shape: str) -> int:
    """Bytes of a printed shape, such as "bf16[16,64]"."""
    dtype, dims = _SHAPE.match(shape).groups()
    bits = BITS[dtype] if dtype in BITS else int(re.search(r"\d+", dtype)[0])
    return math.ceil(bits * math.prod(int(d) for d in dims.split(",") if d) / 8)


def _results(result: str, kind: str, start: bool) -> tuple[str, ...]:
    """The shapes of the results.

    XLA prints a "-start" instruction as (operands, results, ...), except for an all-reduce.
    """
    result = re.sub(r"\{[^{}]*\}", "", result)  # drop layouts, which have brackets of their own
    if start and result.startswith("(") and (kind != "all-reduce" or result.startswith("((")):
        return tuple(_shapes(top_level(result[1:-1])[1]))
    return tuple(_shapes(result))


def top_level(text: str) -> list[str]:
    """Split "a, (b, c), d[1,2]" at the commas outside all brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


# ------------------------------------------------------------ groups


def slices_of(mesh: Mesh) -> list[list[int]]:
    """Positions in the mesh of the devices of each slice."""
    by_slice = collections.defaultdict(list)
    for position, device in enumerate(mesh.devices.flat):
        by_slice[getattr(device, "slice_index", 0)].append(position)
    return list(by_slice.values())


def members(program: Program, mesh: Mesh) -> list[int]:
    """Positions in the mesh of the devices that the program numbers 0, 1, ...

    These are all devices, or those of one slice where the program is compiled for a slice.
    """
    return list(range(mesh.size)) if program.partitions == mesh.size else slices_of(mesh)[0]


def device_groups(line: str, members: list[int]) -> list[list[int]]:
    """Groups of mesh positions that exchange data. A permute has one group per pair."""
    return [[members[i] for i in group] for group in _groups(line, len(members))]


def _groups(line: str, num: int) -> list[list[int]]:
    # The text has four notations: pairs, lists of groups, a reshaped iota, and named mesh axes.
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    if pairs:
        return [list(map(int, pair.split(","))) for pair in re.findall(r"(\d+,\d+)", pairs[1])]
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    if listed:
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", listed[1])]
    iota = re.search(r"replica_groups=\[([\d,]+)\](<=\S+)", line)
    if iota:
        return _iota(iota[2], num).reshape(int(iota[1].split(",")[0]), -1).tolist()
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", line)
    if named:
        sizes = [(name, int(n)) for name, n in re.findall(r"'([^']+)'=(\d+)", named[1])]
        chosen = re.findall(r"'([^']+)'", named[3])
        # A group runs along the named axes, so these are moved last and flattened.
        moved = [i for i, (name, _) in enumerate(sizes) if name in chosen]
        kept = [i for i in range(len(sizes)) if i not in moved]
        ids = _iota(named[2], num).reshape([n for _, n in sizes]).transpose(kept + moved)
        return ids.reshape(-1, math.prod(sizes[i][1] for i in moved)).tolist()
    # Without groups, all devices form one group.
    return [list(range(num))]


def _iota(text: str, num: int) -> np.ndarray:
    """Device numbers of "<=[4,2]T(1,0)": arange in that shape, transposed; arange(num)
    if absent.
    """
    found = re.search(r"<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.arange(num)
    dims, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
    return np.arange(num).reshape(dims).transpose(order)


def spanned(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which the positions of a group differ."""
    shape = mesh.devices.shape
    varies = np.zeros(len(shape), bool)
    for group in groups:
        # The coordinates of the group's members on each mesh axis.
        where = np.array(np.unravel_index(group, shape))
        varies |= (where != where[:, :1]).any(1)
    return tuple(name for name, moved in zip(mesh.axis_names, varies, strict=True) if moved)
