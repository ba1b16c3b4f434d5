"""FLOPs and memory traffic of one run of a compiled program on one device.

Instructions inside loops count once per iteration.
"""

import collections
import dataclasses
import re
from collections.abc import Callable

from bigmodel_jax.plan.program import instructions
from bigmodel_jax.plan.program.hlo import KINDS, num_bytes
from bigmodel_jax.plan.program.instructions import Code, Instruction, memory_bytes

# Instructions that cost nothing themselves: names for existing buffers, control flow whose bodies
# are counted separately, and the second halves of asynchronous pairs.
FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "async-start",
    "async-update",
    "async-done",
    "send-done",
    "recv-done",
    "recv",
    "copy-done",
    "slice-done",
    "dynamic-slice-done",
    "dynamic-update-slice-done",
    "fusion-done",
} | {f"{kind}-done" for kind in KINDS}


COPIES = {"copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"}  # asynchronous ones
UNKNOWN = 2**62  # cycles; the compiler writes the largest integer where it has no estimate


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one step on one device.

    flops: FLOPs by the type of the operands. kernel_flops: those of custom calls. bytes: read and
    written in HBM.
    busy: seconds if only arithmetic and HBM took time. Each instruction takes the slower of the
    two.
    expected: like busy, but matrix products take the time that the compiler expects. For a server:
    as `measure` says of `every`.
    rows: the instructions that take most of `expected`: (operation, seconds, FLOPs, bytes).
    open_ended: loops whose length depends on data; one iteration of each is counted.
    """

    flops: dict[str, float]
    kernel_flops: float
    bytes: float
    busy: float
    expected: float
    rows: list[tuple[str, float, float, float]]
    open_ended: int


def measure(
    code: Code,
    peak: Callable[[str], float],
    bandwidth: float,
    clock: float = 0.0,
    line: Callable[[int], str] = lambda frame: "",
    every: bool = False,
) -> Cost:
    """Add up the cost of all instructions, multiplied by how often loops run them.

    peak: FLOP/s of a device by operand type. bandwidth: bytes/s of its memory. clock: its cycles/s
    where the compiler states cycles, else 0. line: the source line of a stack frame. every: all
    instructions take the time that the compiler expects, where it is the longer. Asynchronous
    copies then overlap with all else, but `expected` is at least the time of the memory traffic.
    """
    every = every and bool(clock)
    totals: dict[str, float] = collections.defaultdict(float)
    rows: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    kernels = moved = busy = expected = 0.0
    for name, body in code.bodies.items():
        # Fused computations are counted with the fusion that calls them.
        times = 0 if name in code.program.fused else code.program.times(name)
        for one in body.values() if times else ():
            if one.opcode in FREE:
                continue
            products = products_of(code, name, one)
            size = bytes_of(code, name, one)
            # An instruction takes the slower of its arithmetic and its memory traffic.
            seconds = max(sum(n / peak(kind) for kind, n in products.items()), size / bandwidth)
            for kind, n in products.items():
                totals[kind] += times * n
            kernels += times * sum(products.values()) if one.opcode == "custom-call" else 0.0
            moved, busy = moved + times * size, busy + times * seconds
            seconds = max(seconds, _stated(one, clock) if products or every else 0.0)
            if every and one.opcode in COPIES:
                seconds = 0.0
            expected += times * seconds
            row = rows[_label(one, line)]
            row[0], row[1], row[2] = (
                row[0] + times * seconds,
                row[1] + times * sum(products.values()),
                row[2] + times * size,
            )
    expected = max(expected, moved / bandwidth) if every else expected
    top = sorted(((label, *row) for label, row in rows.items()), key=lambda row: -row[1])
    return Cost(dict(totals), kernels, moved, busy, expected, top[:20], code.program.open_ended)


def _stated(one: Instruction, clock: float) -> float:
    """Seconds of an instruction by the TPU compiler's own model; 0 where it states none.

    Plans of training take the estimates of matrix products only: some others are 2.5 times the time
    that the memory traffic takes. Plans of servers take them all. A token's time is in hundreds of
    short instructions, where the start of each counts, and in copies to another layout.
    """
    cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest) if clock else None
    return int(cycles[1]) / clock if cycles and int(cycles[1]) < UNKNOWN else 0.0


def _label(one: Instruction, line: Callable[[int], str]) -> str:
    """The operation, the model's source line, and the pass (recomputed or backward)."""
    frame = re.search(r"stack_frame_id=(\d+)", one.rest)
    name = one.op_name.rpartition("/")[2].replace("\\'", "'") or one.name.rstrip(".0123456789")
    # JAX marks recomputed operations by "rematted" and backward ones by "transpose(".
    again = "recomputed" if "rematted" in one.op_name else "backward" if "transpose(" in one.op_name else ""
    return ", ".join(filter(None, (name, line(int(frame[1])) if frame else "", again)))


def products_of(code: Code, computation: str, one: Instruction) -> dict[str, float]:
    """FLOPs by operand type of an instruction and of everything fused into it."""
    if one.opcode in ("fusion", "fusion-start"):
        return _fused_products(code, one.attribute("calls").lstrip("%"))
    number, kind = instructions.flops(code, computation, one)
    return {kind: number} if number else {}


def _fused_products(code: Code, computation: str) -> dict[str, float]:
    totals: dict[str, float] = collections.defaultdict(float)
    for one in code.bodies.get(computation, {}).values():
        for kind, number in products_of(code, computation, one).items():
            totals[kind] += number
    return totals


# ------------------------------------------------------------ memory traffic


def bytes_of(code: Code, computation: str, one: Instruction) -> float:
    """Bytes that an instruction reads and writes in HBM.

    An instruction that takes a slice of a large array counts the slice only.
    """
    shapes = [code.shape(computation, name) for name in one.operands]
    if one.opcode in ("fusion", "fusion-start"):
        return _fusion_bytes(code, one, shapes)
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return 2.0 * memory_bytes(one.result)
    # The array is updated in place, so only the slice is read and written.
    if one.opcode == "dynamic-update-slice":
        return 2.0 * memory_bytes(shapes[1])
    if one.opcode in ("dynamic-slice-start", "dynamic-update-slice-start"):  # either side may be host memory
        piece = shapes[1] if "update" in one.opcode else instructions.made(one)
        return memory_bytes(piece) + (num_bytes(piece.split("{")[0]) if memory_bytes(shapes[0]) else 0.0)
    if one.opcode == "copy-start":  # the result prints as (copy, operand, ...); each may be in HBM or on the chip
        return float(memory_bytes(one.result))
    if one.opcode == "slice-start":  # the result prints as ((operand), slice, ...)
        return float(num_bytes(instructions.made(one)))
    # A collective reads its operands and writes as many bytes.
    if one.opcode.removesuffix("-start") in KINDS or one.opcode == "send":
        return 2.0 * sum(map(memory_bytes, shapes))
    return float(memory_bytes(one.result) + sum(map(memory_bytes, shapes)))


def _fusion_bytes(code: Code, one: Instruction, shapes: list[str]) -> float:
    name = one.attribute("calls").lstrip("%")
    read = sum(_taken(code, name, i, shape) for i, shape in enumerate(shapes))
    body = code.bodies.get(name, {})
    roots = [inner for inner in body.values() if inner.root]
    return read + sum(_written(body, root) for root in roots) if roots else read + memory_bytes(one.result)


def _taken(code: Code, fused: str, number: int, shape: str) -> float:
    """Bytes that a fused computation reads of its operand number `number`."""
    body = code.bodies.get(fused, {})
    names = [inner.name for inner in body.values() if inner.opcode == "parameter" and int(inner.args) == number]
    return _read(code, body, names[0], shape) if names else 0.0


# A nested fusion with this attribute returns its operand in another layout. It copies nothing, so
# only what its users read counts.
OVER_ITSELF = "output_to_operand_aliasing={{}: (0, {})}"


def _read(code: Code, body: dict[str, Instruction], name: str, shape: str) -> float:
    """Bytes that a fusion's body reads of one operand.

    Users that take slices count their slices, also inside nested fusions. An in-place update reads
    nothing. Any other user reads the whole array.
    """
    read = 0.0
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "gather") and user.operands[0] == name and memory_bytes(shape):
            read += memory_bytes(user.result.split("S(")[0])
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.opcode == "bitcast" or (user.opcode == "fusion" and OVER_ITSELF in user.rest):
            read += _read(code, body, user.name, shape)
        elif user.opcode == "fusion":
            inside = user.attribute("calls").lstrip("%")
            read += sum(_taken(code, inside, i, shape) for i, operand in enumerate(user.operands) if operand == name)
            if _is_bitcast(code, inside):  # the nested fusion returns the same array under another name
                read += _read(code, body, user.name, shape)
        else:
            return float(memory_bytes(shape))
    # Slices of one array may overlap, but the array itself is read at most once.
    return min(read, memory_bytes(shape))


def _is_bitcast(code: Code, fused: str) -> bool:
    """Whether a fused computation returns its one operand unchanged."""
    return {one.opcode for one in code.bodies.get(fused, {}).values()} == {"parameter", "bitcast"}


def _written(body: dict[str, Instruction], root: Instruction) -> float:
    """Bytes that a fusion writes. An in-place update writes its slice only."""
    if root.opcode == "tuple":
        return sum(_written(body, body[name]) for name in root.operands if name in body)
    if root.opcode == "bitcast" and root.operands and root.operands[0] in body:
        return _written(body, body[root.operands[0]])
    if root.opcode == "dynamic-update-slice" and root.operands[1] in body:
        return float(memory_bytes(body[root.operands[1]].result)) if memory_bytes(root.result) else 0.0
    return float(memory_bytes(root.result))
