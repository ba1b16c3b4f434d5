"""The instructions of a compiled program's text: their FLOPs and memory traffic."""

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
    """One line of the text.

    name: without the %. result: the printed shape with layout. opcode: such as "fusion". args: the
    text inside the brackets. rest: the text after them. root: whether it is the result of its
    computation.
    """

    name: str
    result: str
    opcode: str
    args: str
    rest: str
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        """The names among the arguments."""
        return tuple(_NAME.findall(self.args))

    def attribute(self, name: str) -> str:
        """The value of `name=...`, up to a comma or as a whole {...}. It is empty if absent."""
        match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return match[1] if match else ""

    @property
    def op_name(self) -> str:
        """The JAX operation that the instruction comes from."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


def made(one: Instruction) -> str:
    """The array that the start of an asynchronous pair produces.

    Its result prints as (operands, produced, ...). A copy prints the produced array first.
    """
    return top_level(one.result[1:-1])[0 if one.opcode == "copy-start" else 1].strip()


def parse(line: str) -> Instruction | None:
    """The instruction of a line; None if the line holds none."""
    head = _HEAD.match(line)
    if head is None:
        return None
    text = line[head.end() :]
    # The result is a tuple in brackets, or ends at the first space.
    end = _closing(text) if text.startswith("(") else text.find(" ")
    result, text = text[: end + 1].strip(), text[end + 1 :].strip()
    opcode, paren, _ = text.partition("(")
    if not paren:
        return None
    end = len(opcode) + _closing(text[len(opcode) :])
    args = text[len(opcode) + 1 : end]
    return Instruction(head[1], result, opcode.strip(), args, text[end + 1 :], line.startswith("ROOT "))


def _closing(text: str) -> int:
    """Position of the bracket that closes the one at position 0."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return i
    return len(text) - 1


class Code:
    """A program's instructions by computation, and the shapes of their operands.

    causal: whether attention kernels skip the keys ahead of a query. Their text does not say.
    """

    def __init__(self, text: str, causal: bool = True):
        self.causal = causal
        self.program = Program(text)
        self.bodies: dict[str, dict[str, Instruction]] = {}
        for name, lines in self.program.computations.items():
            found = [one for line in lines if (one := parse(line)) is not None]
            self.bodies[name] = {one.name: one for one in found}

    def shape(self, computation: str, name: str) -> str:
        """The printed shape of a named instruction. It is empty if unknown."""
        found = self.bodies[computation].get(name)
        return found.result if found else ""


# ------------------------------------------------------------ shapes


def dims(shape: str) -> list[int]:
    """Sizes of the first array of a printed shape."""
    match = re.search(r"\[([\d,]*)\]", shape)
    return [int(d) for d in match[1].split(",") if d] if match else []


def dtype(shape: str) -> str:
    """The type of the first array of a printed shape, such as "bf16"."""
    match = re.search(r"([a-z]\w*)\[", shape)
    return match[1] if match else ""


def memory_bytes(shape: str) -> int:
    """Bytes of a printed shape's arrays in the device's main memory.

    Arrays with S(1) or above in their layout lie elsewhere and do not count. A TPU pads the two
    innermost dimensions to whole tiles, such as T(8,128). The padding counts.
    """
    arrays = ARRAY.findall(shape)
    return sum(_tiled(array, layout) for array, layout in arrays if not re.search(r"S\([1-9]\d*\)", layout))


def _tiled(array: str, layout: str) -> int:
    size, sizes = num_bytes(array), dims(array)
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if not tile or not sizes or not size:
        return size
    filled = list(sizes)
    # A layout lists the dimensions from the innermost on. The tile's last size belongs to it.
    innermost = map(int, layout.partition(":")[0].split(","))
    for dim, length in zip(innermost, reversed(tile[1].split(",")), strict=False):
        filled[dim] = -(-sizes[dim] // int(length)) * int(length)
    return size * math.prod(filled) // math.prod(sizes)


# ------------------------------------------------------------ products


def flops(code: Code, computation: str, one: Instruction) -> tuple[float, str]:
    """(FLOPs of an instruction's matrix products, operand type); (0, "") if it has none itself."""
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
    """FLOPs of a convolution. TPUs also express matrix products as convolutions.

    Positions in the padding do not count, as in XLA's own count.
    """
    labels = re.match(r"(\w+)_(\w+)->(\w+)", one.attribute("dim_labels"))
    left, _, out = labels.groups()
    sizes, sizes_out = dict(zip(left, dims(lhs), strict=True)), dict(zip(out, dims(one.result), strict=True))
    groups = [int(one.attribute(f"{name}_group_count") or 1) for name in ("feature", "batch")]
    # Each output element sums over the input features of its group and the kernel's positions.
    products = sizes["f"] / groups[0] * sizes_out["f"] * sizes["b"] / groups[1]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", one.attribute("window")))
    for i, axis in enumerate(sorted(c for c in left if c.isdigit())):
        products *= _places(window, i, sizes[axis], sizes_out[axis])
    return 2.0 * products


def _places(window: dict[str, str], i: int, size: int, size_out: int) -> int:
    """How many (output, kernel) positions along one axis meet an element of the input."""

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
        # a * stride + offset = m * dilation has integer solutions only if the gcd divides the
        # offset.
        if offset % common or last < first:
            continue
        # Input dilation leaves gaps between elements. Only outputs where a * stride + offset is
        # divisible by the dilation meet an element.
        start = -offset // common * pow(stride // common, -1, every) % every if every > 1 else 0
        count += (last - start) // every - (first - 1 - start) // every
    return count


def _kernel(one: Instruction, shapes: list[str], causal: bool) -> tuple[float, str]:
    """FLOPs of a hand-written kernel: the author's own estimate, else by kind and shapes."""
    target = one.attribute("custom_call_target").strip('"')
    stated = re.search(r'"cost_estimate":\s*\{[^}]*?"flops":\s*"?(\d+)', one.rest)
    if stated:
        return float(stated[1]), dtype(shapes[0]) if shapes else ""
    if one.name.startswith("splash_"):
        return _splash(one, shapes, causal)
    if target.startswith("__cublas$") and len(shapes) >= 2:
        # A cuBLAS call lists the contracted dimensions in its configuration.
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
    """FLOPs of a grouped matrix product (nn/experts/hopper.py).

    It multiplies rows (M, K) with matrices (E, K, N), or two arrays of rows into matrices (E, K,
    N).
    """
    if len(shapes) != 2:
        return 0.0, ""
    rows, other = map(dims, shapes)
    inner = rows[0] if len(other) == 2 else rows[1]
    size = rows[1] * other[1] if len(other) == 2 else math.prod(dims(one.result))
    return 2.0 * inner * size, "bf16"


# Products per pair of query and key in each pass: (over the width of queries and keys, over the
# width of values). The unfused backward passes recompute the logits and the gradient of the
# probabilities.
SPLASH = {"fwd": (1, 1), "dkv": (2, 2), "dq": (2, 1)}
SPLASH_BLOCK = 512  # nn/attention/splash.py


def _splash(one: Instruction, shapes: list[str], causal: bool) -> tuple[float, str]:
    """FLOPs of Pallas's splash attention.

    Its first float arrays are q (..., H, T, h), k (..., K, S, h) and v (..., K, S, w).
    """
    floats = [s for s in shapes if dtype(s) in ("bf16", "f32", "f16") and len(dims(s)) >= 3][:3]
    if len(floats) < 3:
        return 0.0, ""
    (*heads, T, h), (*_, S, _), (*_, w) = map(dims, floats)
    phase = next(name for name in SPLASH if f"_{name}" in one.name)
    # A causal kernel visits the blocks on and below the diagonal.
    blocks = -(-T // SPLASH_BLOCK)
    share = (blocks + 1) / (2 * blocks) if causal and T == S else 1.0
    narrow, wide = SPLASH[phase]
    return 2.0 * math.prod(heads) * T * S * (narrow * h + wide * w) * share, dtype(floats[0])


def _fmha(one: Instruction, shapes: list[str], causal: bool, backward: bool) -> tuple[float, str]:
    """FLOPs of cuDNN's flash attention: 2 products forward, 5 backward.

    A causal kernel skips half of the pairs.
    """
    layout = re.search(r'"intermediate_tensor_shape":\s*\{[^}]*"dimensions":\s*\[([^\]]*)\]', one.rest)
    # The scores' last dimension is the key length. Without it, the keys' sequence dimension is.
    length = int(re.findall(r"\d+", layout[1])[-1]) if layout else max(dims(shapes[1])[1:3])
    products = (5.0 if backward else 2.0) * 2.0 * math.prod(dims(shapes[0])) * length
    return products * (0.5 if causal else 1.0), dtype(shapes[0])
