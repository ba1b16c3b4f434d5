"""List the buffers alive at a program's memory peak, and the model line that made each.

The compiler reports only sums. The program's text stands in the order of its schedule, so each
buffer's lifetime can be followed: from the instruction that makes it to the last one that reads it.
The compiler also leaves gaps between buffers and shares more of them than this analysis sees. The
result is therefore a separate estimate; docs/plan.md compares the two.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

from bigmodel_jax.plan.program.instructions import ARRAY, Code, Instruction, made, memory_bytes
from bigmodel_jax.plan.program.origin import Origins
from bigmodel_jax.training import scopes

Tree = Any  # a buffer's number, or a list of trees for a tuple

SAME = ("bitcast", "opt-barrier", "add-dependency", "optimization-barrier")  # the result is the operand's buffer


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One buffer in HBM.

    bytes: its size. shape: as printed. operation: the JAX name of the instruction that makes or
    fills the buffer. frame: number of a stack frame of the program. stacked: whether a loop fills
    it slice by slice.
    """

    bytes: int
    shape: str
    operation: str
    frame: int
    stacked: bool

    @property
    def kind(self) -> str:
        """What the buffer is for: "activations", "gradients" or "temporaries".

        Activations are stacked by the forward pass for the backward pass. Gradients are stacked by
        the backward pass, or summed over microbatches. A step that runs both passes by hand marks
        them with a named scope.
        """
        for scope, kind in ((scopes.SUM_GRADIENTS, "gradients"), (scopes.SAVE_ACTIVATIONS, "activations")):
            if f"/{scope}/" in self.operation:
                return kind
        # An array that a loop stacks is made by a broadcast, filled by updates, or carried by a
        # while.
        stacked = self.stacked or self.operation.endswith(("broadcast_in_dim", "/while", "dynamic_update_slice"))
        # "jvp(" marks differentiated operations, and "transpose(" those of the backward pass.
        if not stacked or "jvp(" not in self.operation:
            return "temporaries"
        return "gradients" if "transpose(" in self.operation else "activations"


def at_the_peak(code: Code) -> list[Buffer]:
    """The buffers alive at the memory peak, without the program's arguments, largest first."""
    peak = _Walk(code).peak(code.program.entry)[1]
    return sorted(peak, key=lambda b: -b.bytes)


def summary(code: Code, most: int = 12) -> dict:
    """Bytes of the peak by kind, and its `most` largest arrays with the line that made each."""
    found = at_the_peak(code)
    kinds = {
        kind: sum(b.bytes for b in found if b.kind == kind) for kind in ("activations", "gradients", "temporaries")
    }
    # Arrays of one shape, operation and line share a row.
    alike: dict[tuple, list[Buffer]] = {}
    for b in (b for b in found if _is_array(b.shape)):
        alike.setdefault((b.shape, b.operation, b.frame), []).append(b)
    rows = [
        {
            "bytes": sum(b.bytes for b in group),
            "shape": shape + (f" x {len(group)}" if len(group) > 1 else ""),
            "operation": readable(operation),
            "source": code.program.frames.line(frame),
            "kind": group[0].kind,
        }
        for (shape, operation, frame), group in alike.items()
    ]
    return kinds | {"largest": sorted(rows, key=lambda row: -row["bytes"])[:most]}


def _is_array(shape: str) -> bool:
    """Whether a shape has more than one entry.

    A scalar fills a whole tile on a TPU, but tells the reader nothing.
    """
    return any(int(size) > 1 for size in re.findall(r"\d+", shape[shape.find("[") :]))


def readable(operation: str) -> str:
    """The operation's name without the wrappers that JAX puts around it."""
    skipped = ("jit(", "while", "body", "closed_call", "eval_jaxpr", "checkpoint", "rematted_computation")
    parts = [p for p in operation.split("/") if p and not p.startswith(skipped)]
    return "/".join(parts[-2:])


# ------------------------------------------------------------ which buffer lives when


class _Walk:
    """Follow each buffer of a program from its definition to its last use."""

    def __init__(self, code: Code):
        self.code = code
        self.origins = Origins(code)
        self.buffers: list[Buffer] = []

    @functools.cache  # noqa: B019 - lives as long as one walk
    def peak(self, computation: str) -> tuple[int, list[Buffer]]:
        """(bytes, buffers) that a computation makes, at its peak. Its parameters do not count."""
        body = list(self.code.bodies[computation].values())
        values: dict[str, Tree] = {}
        inner: dict[int, tuple[int, list[Buffer]]] = {}
        for at, one in enumerate(body):
            values[one.name] = self._result(computation, one, values)
            callees = self._callees(one)
            if callees:
                inner[at] = max((self.peak(name) for name in callees), key=lambda p: p[0])
        return self._worst(body, values, inner)

    def _worst(self, body: list[Instruction], values: dict[str, Tree], inner) -> tuple[int, list[Buffer]]:
        """(bytes, buffers) at the peak of one computation.

        values: the buffers of each instruction. inner: the peak of the computations that an
        instruction calls, by its position.
        """
        born, dies = {}, {}
        for at, one in enumerate(body):
            for number in _numbers(values[one.name]):
                born.setdefault(number, at)
                dies[number] = at
            for operand in one.operands:
                for number in _numbers(values.get(operand, [])):
                    dies[number] = at
        # The caller owns the buffers that a computation returns: a loop's carry, a donated
        # argument.
        for number in _numbers(values[next(one.name for one in body if one.root)]):
            born.pop(number, None)
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for number, at in born.items():
            starts.setdefault(at, []).append(number)
            ends.setdefault(dies[number], []).append(number)
        alive: set[int] = set()
        size, best, when = 0, -1, set()
        place = 0
        for at in range(len(body)):
            for number in starts.get(at, ()):
                alive.add(number)
                size += self.buffers[number].bytes
            # While an instruction runs its callees, their peak adds to the live buffers.
            here = size + inner.get(at, (0, []))[0]
            if here > best:
                best, when, place = here, set(alive), at
            for number in ends.get(at, ()):
                alive.discard(number)
                size -= self.buffers[number].bytes
        return max(best, 0), [self.buffers[n] for n in when] + inner.get(place, (0, []))[1]

    def _callees(self, one: Instruction) -> list[str]:
        """Computations that run inside this instruction and have buffers of their own."""
        if one.opcode == "while":
            return [one.attribute("body").lstrip("%")]
        if one.opcode == "conditional":
            branches = re.findall(r"%([\w.\-]+)", one.attribute("branch_computations"))
            pair = (one.attribute("true_computation"), one.attribute("false_computation"))
            return branches or [name.lstrip("%") for name in pair if name]
        return [one.attribute("to_apply").lstrip("%")] if one.opcode == "call" else []

    def _result(self, computation: str, one: Instruction, values: dict[str, Tree]) -> Tree:
        operands = [values.get(name, []) for name in one.operands]
        if one.opcode in ("parameter", "constant"):
            return _nothing(one.result)
        if one.opcode == "get-tuple-element":
            whole = operands[0]
            index = int(one.attribute("index"))
            return whole[index] if isinstance(whole, list) and index < len(whole) else []
        if one.opcode == "tuple":
            return operands
        if one.opcode in SAME or one.opcode.endswith("-update"):
            return operands[0] if operands else []
        if one.opcode.endswith("-done"):
            return self._ended(self.code.bodies[computation].get(one.operands[0]), operands[0])
        # A loop updates its carry in place.
        if one.opcode == "while":
            return operands[0]
        if one.opcode == "conditional":  # its results overwrite the arguments, which the caller gives up
            return _nothing(one.result)
        if one.opcode.endswith("-start") and one.result.startswith("(") and operands:
            return self._started(computation, one, operands)
        shared = self._in_place(one)
        given = {index: operands[n] for index, n in shared.items() if n < len(operands)}
        return self._new(computation, one, given.get)

    def _started(self, computation: str, one: Instruction, operands: list[Tree]) -> Tree:
        """[operands, produced array] of the start of an asynchronous pair."""
        if None in (shared := self._in_place(one)):
            return [operands, operands[shared[None]]]
        return [operands, self._new(computation, dataclasses.replace(one, result=made(one)), lambda index: None)]

    def _ended(self, start: Instruction | None, tree: Tree) -> Tree:
        """The array that the start of an asynchronous pair produced."""
        return tree[1] if isinstance(tree, list) and len(tree) == 2 and start and "-start" in start.opcode else tree

    def _in_place(self, one: Instruction) -> dict[int | None, int]:
        """{position in the result's tuple (None: the result): operand that it overwrites}."""
        found: dict[int | None, int] = {}
        if one.opcode.startswith("dynamic-update-slice"):
            return {None: 0}
        aliases = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", one.rest)
        for index, operand in re.findall(r"\{(\d*)\}: \((\d+), \{\}", aliases[1] if aliases else ""):
            found[int(index) if index else None] = int(operand)
        # A fusion without explicit aliases may still update an operand in place.
        if one.opcode.startswith("fusion") and not found:
            body = self.code.bodies.get(one.attribute("calls").lstrip("%"), {})
            root = next((inner for inner in body.values() if inner.root), None)
            roots = [body.get(n) for n in root.operands] if root and root.opcode == "tuple" else [root]
            for i, each in enumerate(roots):
                if each is not None and (source := _updated(body, each)) is not None:
                    found[i if root.opcode == "tuple" else None] = source
        return found

    def _new(self, computation: str, one: Instruction, given: Callable[[int | None], Tree | None]) -> Tree:
        """Make new buffers for a result, except for the parts that `given` already has."""
        if not one.result.startswith("("):
            known = given(None)
            return self._buffer(computation, one, one.result) if known is None else known
        out = []
        for i, part in enumerate(_parts(one.result)):
            known = given(i)
            out.append(self._buffer(computation, one, part) if known is None else known)
        return out

    def _buffer(self, computation: str, one: Instruction, shape: str) -> Tree:
        size = memory_bytes(shape)
        if not size:
            return []
        one, stacked = self.origins.of(computation, one)
        frame = re.search(r"stack_frame_id=(\d+)", one.rest)
        self.buffers.append(Buffer(size, _plain(shape), one.op_name, int(frame[1]) if frame else 0, stacked))
        return len(self.buffers) - 1


def _updated(body: dict[str, Instruction], one: Instruction) -> int | None:
    """The number of the operand that a fusion's result overwrites, or None.

    That is the array into which a dynamic-update-slice puts its slice.
    """
    while one is not None and one.opcode == "bitcast":
        one = body.get(one.operands[0])
    if one is None or one.opcode != "dynamic-update-slice":
        return None
    source = body.get(one.operands[0])
    while source is not None and source.opcode == "bitcast":
        source = body.get(source.operands[0])
    return int(source.args) if source is not None and source.opcode == "parameter" else None


def _numbers(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else [n for part in tree for n in _numbers(part)]


def _nothing(result: str) -> Tree:
    """A tree with the result's structure, but without buffers."""
    return [[] for _ in _parts(result)] if result.startswith("(") else []


def _parts(result: str) -> list[str]:
    """The arrays in a tuple's shape, at all depths."""
    return [match[0] for match in ARRAY.finditer(result)]


def _plain(shape: str) -> str:
    match = ARRAY.search(shape)
    return match[1] if match else shape
