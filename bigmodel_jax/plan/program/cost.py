"""What one run of a compiled program computes and moves on one device, loops multiplied out."""

import collections
import dataclasses
import re
from collections.abc import Callable

from bigmodel_jax.plan.program import instructions
from bigmodel_jax.plan.program.hlo import KINDS, num_bytes
from bigmodel_jax.plan.program.instructions import Code, Instruction, memory_bytes

# Names for what is there already, control flow whose bodies are counted themselves, and the second halves of pairs.
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


UNKNOWN = 2**62  # cycles; the compiler writes the largest integer where it does not know


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one device and one step. flops: by the type of the operands; bytes: read and written in HBM.

    busy: seconds if nothing but arithmetic and HBM took time, each instruction at the slower of the two. expected: the same
    with products as slow as the compiler expects them to be. rows: the instructions that take most of `expected`, as
    (operation, seconds, FLOPs, bytes).
    """

    flops: dict[str, float]
    kernel_flops: float
    bytes: float
    busy: float
    expected: float
    rows: list[tuple[str, float, float, float]]


def measure(
    code: Code,
    peak: Callable[[str], float],
    bandwidth: float,
    clock: float = 0.0,
    line: Callable[[int], str] = lambda frame: "",
) -> Cost:
    """peak: FLOP/s of a device by operand type; bandwidth: bytes/s of its memory; clock: its cycles/s, where the compiler
    states cycles; line: of a stack frame."""
    totals: dict[str, float] = collections.defaultdict(float)
    rows: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    kernels = moved = busy = expected = 0.0
    for name, body in code.bodies.items():
        times = 0 if name in code.program.fused else code.program.times(name)
        for one in body.values() if times else ():
            if one.opcode in FREE:
                continue
            products = products_of(code, name, one)
            size = bytes_of(code, name, one)
            seconds = max(sum(n / peak(kind) for kind, n in products.items()), size / bandwidth)
            for kind, n in products.items():
                totals[kind] += times * n
            kernels += times * sum(products.values()) if one.opcode == "custom-call" else 0.0
            moved, busy = moved + times * size, busy + times * seconds
            seconds = max(seconds, _stated(one, clock) if products else 0.0)
            expected += times * seconds
            row = rows[_label(one, line)]
            row[0], row[1], row[2] = (
                row[0] + times * seconds,
                row[1] + times * sum(products.values()),
                row[2] + times * size,
            )
    top = sorted(((label, *row) for label, row in rows.items()), key=lambda row: -row[1])
    return Cost(dict(totals), kernels, moved, busy, expected, top[:20])


def _stated(one: Instruction, clock: float) -> float:
    """Seconds of a product by the TPU compiler's own model, with the windows that it chose; 0 where it states none.

    Its statements about what is no product are not used: they are 2.5 times what the memory takes, or no number at all.
    """
    cycles = re.search(r'"estimated_cycles":"(\d+)"', one.rest) if clock else None
    return int(cycles[1]) / clock if cycles and int(cycles[1]) < UNKNOWN else 0.0


def _label(one: Instruction, line: Callable[[int], str]) -> str:
    """The operation, the line of the model that it comes from, and the pass in which it runs."""
    frame = re.search(r"stack_frame_id=(\d+)", one.rest)
    name = one.op_name.rpartition("/")[2] or one.name.rstrip(".0123456789")
    again = "recomputed" if "rematted" in one.op_name else "backward" if "transpose(" in one.op_name else ""
    return ", ".join(filter(None, (name, line(int(frame[1])) if frame else "", again)))


def products_of(code: Code, computation: str, one: Instruction) -> dict[str, float]:
    """FLOPs by type of an instruction, with all that is fused into it."""
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


# ------------------------------------------------------------------------------------------------ memory traffic


def bytes_of(code: Code, computation: str, one: Instruction) -> float:
    """Bytes that an instruction reads and writes in HBM; of a slice of a large array, the slice."""
    shapes = [code.shape(computation, name) for name in one.operands]
    if one.opcode in ("fusion", "fusion-start"):
        return _fusion_bytes(code, one, shapes)
    if one.opcode in ("dynamic-slice", "gather", "slice"):
        return 2.0 * memory_bytes(one.result)
    if one.opcode == "dynamic-update-slice":
        return 2.0 * memory_bytes(shapes[1])
    if one.opcode in ("dynamic-slice-start", "dynamic-update-slice-start"):  # one end may be the host's memory
        piece = shapes[1] if "update" in one.opcode else instructions.made(one)
        return memory_bytes(piece) + (num_bytes(piece.split("{")[0]) if memory_bytes(shapes[0]) else 0.0)
    if one.opcode == "copy-start":  # (copy, operand, ...), each in HBM or on the chip
        return float(memory_bytes(one.result))
    if one.opcode == "slice-start":  # ((operand), slice, ...)
        return float(num_bytes(instructions.made(one)))
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
    """Bytes that a fused computation reads of the operand with this number."""
    body = code.bodies.get(fused, {})
    names = [inner.name for inner in body.values() if inner.opcode == "parameter" and int(inner.args) == number]
    return _read(code, body, names[0], shape) if names else 0.0


# A fusion inside a fusion that gives its operand in another layout: it makes no more of it than is read.
OVER_ITSELF = "output_to_operand_aliasing={{}: (0, {})}"


def _read(code: Code, body: dict[str, Instruction], name: str, shape: str) -> float:
    """Bytes read of an operand of a fusion: slices where nothing else is taken of it, also by what is fused into the fusion;
    none where it is written in place."""
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
            if _is_bitcast(code, inside):  # the same array by another name
                read += _read(code, body, user.name, shape)
        else:
            return float(memory_bytes(shape))
    return min(read, memory_bytes(shape))


def _is_bitcast(code: Code, fused: str) -> bool:
    """Whether a fused computation gives its one operand as it is."""
    return {one.opcode for one in code.bodies.get(fused, {}).values()} == {"parameter", "bitcast"}


def _written(body: dict[str, Instruction], root: Instruction) -> float:
    if root.opcode == "tuple":
        return sum(_written(body, body[name]) for name in root.operands if name in body)
    if root.opcode == "bitcast" and root.operands and root.operands[0] in body:
        return _written(body, body[root.operands[0]])
    if root.opcode == "dynamic-update-slice" and root.operands[1] in body:
        return float(memory_bytes(body[root.operands[1]].result)) if memory_bytes(root.result) else 0.0
    return float(memory_bytes(root.result))
