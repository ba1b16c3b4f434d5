"""Classify each instruction of a compiled step: module, kind, pass, source line, least time."""

import dataclasses
import re
from collections.abc import Callable, Iterator

from bigmodel_jax.plan.program.cost import FREE, bytes_of, products_of
from bigmodel_jax.plan.program.frames import Call
from bigmodel_jax.plan.program.hlo import KINDS as COLLECTIVES
from bigmodel_jax.plan.program.instructions import Code, Instruction
from bigmodel_jax.plan.program.origin import Origins

# Kinds of operations, as profile.json and the page name them.
PRODUCTS, ATTENTION, NORMS, COPIES = "products", "attention", "norms", "copies"
COLLECTIVE, ELEMENTWISE, CONTROL = "collectives", "elementwise and sums", "loops and branches"
OTHER_PROGRAMS, WAITING = "other programs", "waiting"
KINDS = (PRODUCTS, ATTENTION, NORMS, ELEMENTWISE, COPIES, COLLECTIVE, CONTROL, OTHER_PROGRAMS, WAITING)

# Maps part of a file's path to the module of the operations that are called from that file.
FILES = (
    ("/nn/attention/", "attention"),
    ("/nn/position", "attention"),
    ("/nn/feedforward", "mlp"),
    ("/nn/experts/", "experts"),
    ("/nn/norm", "norm"),
    ("/nn/head", "head and loss"),
    ("/nn/cross_entropy", "head and loss"),
    ("/nn/table", "embedding"),
    ("/nn/lora", "adapters"),
    ("/nn/dropout", "dropout"),
    ("/nn/stack", "layers' weights and carries"),
    ("/optim/", "optimizer"),
    ("/optax/", "optimizer"),
    ("/bigmodel_jax/objectives/", "head and loss"),
    ("/bigmodel_jax/training/", "training step"),
)
# Maps part of a model function's name to a module. The first match counts. It also applies to a
# user's own models.
FUNCTIONS = (
    ("attn", "attention"),
    ("attention", "attention"),
    ("attend", "attention"),
    ("qkv", "attention"),
    ("mlp", "mlp"),
    ("feed_forward", "mlp"),
    ("feedforward", "mlp"),
    ("ffn", "mlp"),
    ("norm", "norm"),
    ("unembed", "head and loss"),
    ("embed", "embedding"),
    ("head", "head and loss"),
    ("logits", "head and loss"),
    ("loss", "head and loss"),
    ("conv", "convolution"),
)
# Flax calls the methods of Linen modules through this function of models/flax_module.py.
_INTERCEPTOR = "_average_over_devices"
_CONTAINERS = ("while", "conditional", "call")
# Opcodes that only move or relabel data.
_COPIES = {
    *("copy", "copy-start", "copy-done", "transpose", "reshape", "bitcast", "slice", "dynamic-slice", "concatenate"),
    *("dynamic-update-slice", "pad", "broadcast", "gather", "reverse", "convert", "parameter", "constant", "tuple"),
    *("get-tuple-element", "slice-start", "slice-done", "iota"),
}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of a compiled step.

    module, kind, phase: its groups on the profile page. label: the JAX name of the operation.
    source: the model's source line. container: whether it runs other instructions, as a loop does.
    flops, bytes: of all its runs in one step on one device. seconds: the least time for them by the
    roofline; None where the program's text does not say how often it runs.
    """

    module: str
    kind: str
    phase: str
    label: str
    source: str
    container: bool
    flops: float
    bytes: float
    seconds: float | None


def operations(text: str, peak: Callable[[str], float], bandwidth: float) -> dict[str, Operation]:
    """{instruction name: Operation} of a compiled program's text.

    peak: FLOP/s of one device by operand type. bandwidth: bytes/s of its memory.
    """
    code = Code(text)
    origins = Origins(code)
    found = {}
    for computation, body in code.bodies.items():
        if computation in code.program.fused:
            continue
        times = code.program.times(computation) if code.program.is_counted(computation) else None
        for one in body.values():
            found[one.name] = _operation(code, origins, computation, one, times, peak, bandwidth)
    return found


def _operation(code, origins, computation, one, times, peak, bandwidth) -> Operation:
    products = {} if one.opcode in FREE else products_of(code, computation, one)
    moved = 0.0 if one.opcode in FREE else bytes_of(code, computation, one)
    seconds = max(sum(n / peak(kind) for kind, n in products.items()), moved / bandwidth)
    telling = _telling(code, origins, computation, one)
    calls = _own(code.program.frames.calls(_frame(telling)))
    module, source = module_of(calls, telling.op_name)
    # JAX writes transpose(...) into the names of a backward pass, and rematted into those of a
    # second
    again = "recomputed" if "rematted" in telling.op_name else "backward" if "transpose(" in telling.op_name else ""
    kind = _kind(code, one, module, calls, bool(products))
    if kind == COLLECTIVE:  # a collective takes the network's time, which is unknown here
        seconds = 0.0
    runs = times or 0
    return Operation(
        module,
        kind,
        "update" if module == "optimizer" else again or "forward",
        telling.op_name.rpartition("/")[2] or one.name.rstrip(".0123456789"),
        source,
        one.opcode in _CONTAINERS,
        runs * sum(products.values()),
        runs * moved,
        None if times is None else times * seconds,
    )


def _telling(code: Code, origins: Origins, computation: str, one: Instruction) -> Instruction:
    """The instruction whose name and line describe `one` best.

    For a fusion with a matrix product, that is the product.
    """
    product = next((inner for inner in _inside(code, one) if inner.opcode in ("dot", "convolution")), None)
    return product if product is not None and product.op_name else origins.of(computation, one)[0]


def _inside(code: Code, one: Instruction) -> Iterator[Instruction]:
    if one.opcode not in ("fusion", "fusion-start"):
        yield one
        return
    for inner in code.bodies.get(one.attribute("calls").lstrip("%"), {}).values():
        yield from _inside(code, inner)


def _frame(one: Instruction) -> int:
    found = re.search(r"stack_frame_id=(\d+)", one.rest)
    return int(found[1]) if found else 0


def _own(calls: list[Call]) -> list[Call]:
    """The calls made from this package, the user's files, or optax."""
    return [c for c in calls if "/optax/" in c.file or not re.search(r"site-packages|/lib/python|^<|^\?", c.file)]


def module_of(calls: list[Call], op_name: str) -> tuple[str, str]:
    """(module, source line) of an operation, from its calls.

    The innermost call that names a module counts. A model function that names none is a module of
    its own. An operation without calls is classified by its name.
    """
    for file, function, line in (call for call in calls if call.function != _INTERCEPTOR):
        source = f"{re.sub(r'^.*(bigmodel_jax|site-packages)/', '', file)}:{line}"
        if named := next((module for part, module in FILES if part in file), ""):
            return named, source
        if "/bigmodel_jax/" not in file or "/models/" in file:
            last = function.rpartition(".")[2]
            words = (module for part, module in FUNCTIONS if part in last.lower())
            return next(words, f"{file.rpartition('/')[2].removesuffix('.py')} {last}".strip()), source
    return ("parameters and state" if re.match(r"(state|constants|batch)\b", op_name) else "without a line of code"), ""


def _kind(code: Code, one: Instruction, module: str, calls: list[Call], products: bool) -> str:
    inside = list(_inside(code, one))
    if any(i.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES for i in inside):
        return COLLECTIVE
    if one.opcode in ("send", "recv", "send-done", "recv-done"):
        return COLLECTIVE
    if one.opcode in _CONTAINERS:
        return CONTROL
    if all(i.opcode in _COPIES for i in inside):
        return COPIES
    # Projections are called through nn/linear.py. So files in attention/ directly compute only
    # scores, softmax and weighted sums of values.
    if calls and "/nn/attention/" in calls[0].file:
        return ATTENTION
    if products:
        return PRODUCTS
    return NORMS if module == "norm" else ELEMENTWISE
