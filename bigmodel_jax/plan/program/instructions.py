"""The instructions of a compiled program's text: what each computes, and what it reads and writes in the memory."""

import dataclasses
import math
import re

from bigmodel_jax.plan.program.hlo import num_bytes, top_level
from bigmodel_jax.plan.program.program import Program

_HEAD = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"\b((?:pred|token|bf16|[subfc]\d+\w*)\[[\d,]*\])(?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. result: its shape as printed, with layout; args: what stands in the brackets, operands: the names there;
    rest: what stands behind them."""

    name: str
    result: str
    opcode: str
    args: str
    rest: str
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        return tuple(_NAME.findall(self.args))

    def attribute(self, name: str) -> str:
        """The text of `name=...` up to the comma, or of {...}; empty where there is none."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return match[1] if match else ""

    @property
    def op_name(self) -> str:
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


def made(one: Instruction) -> str:
    """What the start of a pair makes, of the tuple that it prints: (its operands, what it makes, ...), of a copy the two
    the other way round."""
    return top_level(one.result[1:-1])[0 if one.opcode == "copy-start" else 1].strip()


def parse(line: str) -> Instruction | None:
    """The instruction of a line; None for a line that holds none."""
    head = _HEAD.match(line)
    if head is None:
        return None
    text = line[head.end() :]
    end = _closing(text) if text.startswith("(") else text.find(" ")
    result, text = text[: end + 1].strip(), text[end + 1 :].strip()
    opcode, paren, _ = text.partition("(")
    if not paren:
        return None
    end = len(opcode) + _closing(text[len(opcode) :])
    args = text[len(opcode) + 1 : end]
    return Instruction(head[1], result, opcode.strip(), args, text[end + 1 :], line.startswith("ROOT "))


def _closing(text: str) -> int:
    """Position of the bracket that closes the one at 0."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return i
    return len(text) - 1


class Code:
    """A program's instructions by computation, with the shapes that their operands' names stand for.

    causal: whether its attention kernels skip what lies ahead of a query, which their text does not say.
    """

    def __init__(self, text: str, causal: bool = True):
        self.causal = causal
        self.program = Program(text)
        self.bodies: dict[str, dict[str, Instruction]] = {}
        for name, lines in self.program.computations.items():
            found = [one for line in lines if (one := parse(line)) is not None]
            self.bodies[name] = {one.name: one for one in found}

    def shape(self, computation: str, name: str) -> str:
        found = self.bodies[computation].get(name)
        return found.result if found else ""


# ------------------------------------------------------------------------------------------------ shapes


def dims(shape: str) -> list[int]:
    """Sizes of the first array of a printed shape."""
    match = re.search(r"\[([\d,]*)\]", shape)
    return [int(d) for d in match[1].split(",") if d] if match else []


def dtype(shape: str) -> str:
    match = re.search(r"([a-z]\w*)\[", shape)
    return match[1] if match else ""


def memory_bytes(shape: str) -> int:
    """Bytes of the arrays of a printed shape that lie in the device's main memory: S(1) and above are other places.

    A TPU's arrays lie in tiles, T(8,128) of their two innermost dimensions, and fill the last one of each dimension up.
    """
    arrays = ARRAY.findall(shape)
    return sum(_tiled(array, layout) for array, layout in arrays if not re.search(r"S\([1-9]\d*\)", layout))


def _tiled(array: str, layout: str) -> int:
    size, sizes = num_bytes(array), dims(array)
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if not tile or not sizes or not size:
        return size
    filled = list(sizes)
    innermost = map(int, layout.partition(":")[0].split(","))
    for dim, length in zip(innermost, reversed(tile[1].split(",")), strict=False):
        filled[dim] = -(-sizes[dim] // int(length)) * int(length)
    return size * math.prod(filled) // math.prod(sizes)


# ------------------------------------------------------------------------------------------------ products


def flops(code: Code, computation: str, one: Instruction) -> tuple[float, str]:
    """(FLOPs of an instruction's products, type of their operands); (0, "") where it has none of its own."""
    if one.opcode in ("dot", "convolution"):
        lhs, rhs = (code.shape(computation, name) for name in one.operands[:2])
        return (_dot if one.opcode == "dot" else _convolution)(one, lhs, rhs), dtype(lhs)
    if one.opcode == "custom-call":
        shapes = [code.shape(computation, name) for name in one.operands]
        return _kernel(one, shapes, code.causal)
    return 0.0, ""


def _dot(one: Instruction, lhs: str, rhs: str) -> float:
    contracted = [int(n) for n in re.findall(r"\d+", one.attribute("lhs_contracting_dims"))]
    sizes = dims(lhs)
    return 2.0 * math.prod(dims(one.result)) * math.prod(sizes[d] for d in contracted)


def _convolution(one: Instruction, lhs: str, rhs: str) -> float:
    """Products of a TPU's dots are convolutions, too. Only places that meet an element count, as in XLA's own count."""
    labels = re.match(r"(\w+)_(\w+)->(\w+)", one.attribute("dim_labels"))
    left, _, out = labels.groups()
    sizes, sizes_out = dict(zip(left, dims(lhs), strict=True)), dict(zip(out, dims(one.result), strict=True))
    groups = [int(one.attribute(f"{name}_group_count") or 1) for name in ("feature", "batch")]
    products = sizes["f"] / groups[0] * sizes_out["f"] * sizes["b"] / groups[1]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", one.attribute("window")))
    for i, axis in enumerate(sorted(c for c in left if c.isdigit())):
        products *= _places(window, i, sizes[axis], sizes_out[axis])
    return 2.0 * products


def _places(window: dict[str, str], i: int, size: int, size_out: int) -> int:
    """Pairs of an output and a kernel position, along one axis, that meet an element of the input."""

    def number(name: str) -> int:
        return int(window[name].split("x")[i]) if name in window else 1

    low = int(window["pad"].split("x")[i].split("_")[0]) if "pad" in window else 0
    stride, dilate, spread = number("stride"), number("rhs_dilate"), number("lhs_dilate")
    common = math.gcd(stride, spread)
    every = spread // common
    count = 0
    for k in range(number("size")):
        offset = k * dilate - low
        first, last = max(0, -(offset // stride)), min(size_out - 1, ((size - 1) * spread - offset) // stride)
        if offset % common or last < first:
            continue
        # Outputs that meet an element and not a gap: a * stride + offset divisible by the spread.
        start = -offset // common * pow(stride // common, -1, every) % every if every > 1 else 0
        count += (last - start) // every - (first - 1 - start) // every
    return count


def _kernel(one: Instruction, shapes: list[str], causal: bool) -> tuple[float, str]:
    """Products of a hand-written kernel: as its author states them, or as its kind and shapes say."""
    target = one.attribute("custom_call_target").strip('"')
    stated = re.search(r'"cost_estimate":\s*\{[^}]*?"flops":\s*"?(\d+)', one.rest)
    if stated:
        return float(stated[1]), dtype(shapes[0]) if shapes else ""
    if one.name.startswith("splash_"):
        return _splash(one, shapes, causal)
    if target.startswith("__cublas$") and len(shapes) >= 2:
        numbers = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', one.rest)
        contracted = [int(n) for n in re.findall(r"\d+", numbers[1])] if numbers else [len(dims(shapes[0])) - 1]
        sizes = dims(shapes[0])
        return 2.0 * math.prod(dims(one.result)) * math.prod(sizes[d] for d in contracted), dtype(shapes[0])
    if "fmha" in target and len(shapes) >= 3:
        return _fmha(one, shapes, causal, backward="Backward" in target)
    if target.startswith("mosaic_gpu"):
        return _grouped(one, [s for s in shapes if dtype(s) == "bf16"])
    return 0.0, ""


def _grouped(one: Instruction, shapes: list[str]) -> tuple[float, str]:
    """nn/experts/hopper.py: rows and matrices (E, ., .) into rows, or two arrays of rows into matrices."""
    if len(shapes) != 2:
        return 0.0, ""
    rows, other = map(dims, shapes)
    inner = rows[0] if len(other) == 2 else rows[1]
    size = rows[1] * other[1] if len(other) == 2 else math.prod(dims(one.result))
    return 2.0 * inner * size, "bf16"


# Products per pair of query and key of each pass: over the width of queries and keys, over that of values.
# Unfused backward passes compute the logits and the gradient of the probabilities once more.
SPLASH = {"fwd": (1, 1), "dkv": (2, 2), "dq": (2, 1)}
SPLASH_BLOCK = 512  # nn/attention/splash.py


def _splash(one: Instruction, shapes: list[str], causal: bool) -> tuple[float, str]:
    """Pallas's flash attention: q (..., H, T, h), k (..., K, S, h), v (..., K, S, w) are its first arrays of floats."""
    floats = [s for s in shapes if dtype(s) in ("bf16", "f32", "f16") and len(dims(s)) >= 3][:3]
    if len(floats) < 3:
        return 0.0, ""
    (*heads, T, h), (*_, S, _), (*_, w) = map(dims, floats)
    phase = next(name for name in SPLASH if f"_{name}" in one.name)
    blocks = -(-T // SPLASH_BLOCK)
    share = (blocks + 1) / (2 * blocks) if causal and T == S else 1.0
    narrow, wide = SPLASH[phase]
    return 2.0 * math.prod(heads) * T * S * (narrow * h + wide * w) * share, dtype(floats[0])


def _fmha(one: Instruction, shapes: list[str], causal: bool, backward: bool) -> tuple[float, str]:
    """cuDNN's flash attention: 2 products forward, 5 backward; a causal one skips half."""
    layout = re.search(r'"intermediate_tensor_shape":\s*\{[^}]*"dimensions":\s*\[([^\]]*)\]', one.rest)
    length = int(re.findall(r"\d+", layout[1])[-1]) if layout else max(dims(shapes[1])[1:3])
    products = (5.0 if backward else 2.0) * 2.0 * math.prod(dims(shapes[0])) * length
    return products * (0.5 if causal else 1.0), dtype(shapes[0])
