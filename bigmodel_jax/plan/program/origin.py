"""Find out what a buffer is for.

For an unnamed buffer, the values that a loop writes into it show this.
"""

import collections
import functools
import re

from bigmodel_jax.plan.program.instructions import Code, Instruction

# Opcodes that pass on their operand, or a piece of it.
PASSES = ("bitcast", "copy", "copy-start", "copy-done", "convert", "tuple", "opt-barrier", "add-dependency")
READS = (*PASSES, "all-gather", "all-gather-start", "all-reduce", "collective-permute-start")
SLICES = ("dynamic-slice", "dynamic-slice-start", "slice", "slice-start", "get-tuple-element")


class Origins:
    """Finds the named instruction behind each unnamed buffer of a program."""

    def __init__(self, code: Code):
        self.code = code

    def of(self, computation: str, one: Instruction) -> tuple[Instruction, bool]:
        """The most informative instruction about the array that `one` makes.

        Returns (instruction, whether a loop fills the array). The first choice is what a loop
        writes into the array, then the instruction itself, then the instruction whose array it
        copies.
        """
        writer = self._filled(computation, one.name)
        if writer is not None:
            return writer
        own = self._named(one)
        return (own if telling(own) else self._read_from(computation, one) or own), False

    def _named(self, one: Instruction) -> Instruction:
        """The instruction, or, for a fusion without a name, the last named one inside it."""
        inner = self.code.bodies.get(one.attribute("calls").lstrip("%"), {}) if not telling(one) else {}
        return next((each for each in reversed(inner.values()) if telling(each)), one)

    # ------------------------------------------------------------ forwards: what a loop writes

    @functools.cache  # noqa: B019 - lives as long as one program
    def _users(self, computation: str) -> dict[str, list[Instruction]]:
        found = collections.defaultdict(list)
        for one in self.code.bodies[computation].values():
            for name in one.operands:
                found[name].append(one)
        return found

    def _filled(self, computation: str, name: str, depth: int = 0) -> tuple[Instruction, bool] | None:
        """What a loop that carries the array writes into it.

        None where no loop carries the array or the loop only reads it.
        """
        # A chain of copies is followed for at most 8 links.
        for user in self._users(computation)[name] if depth < 8 else ():
            if user.opcode == "tuple":
                loops = [w for w in self._users(computation)[user.name] if w.opcode == "while"]
                places = [i for i, operand in enumerate(user.operands) if operand == name]
                found = [self._written(w.attribute("body").lstrip("%"), i) for w in loops for i in places]
            elif user.opcode in PASSES:
                found = [self._filled(computation, user.name, depth + 1)]
            else:
                continue
            if written := next(filter(None, found), None):
                return written
        return None

    @functools.cache  # noqa: B019
    def _written(self, body: str, place: int) -> tuple[Instruction, bool] | None:
        """What a loop's body returns at one place of its carry; None if it is unchanged."""
        instructions = self.code.bodies[body]
        root = next(one for one in instructions.values() if one.root)
        one = instructions.get(root.operands[place]) if root.opcode == "tuple" else None
        index = None
        # Follow the carry's value back through copies to the instruction that made it.
        while one is not None:
            if one.opcode == "parameter":
                return None
            if one.opcode == "while":
                return self._written(one.attribute("body").lstrip("%"), index) if index is not None else None
            if one.opcode == "get-tuple-element":
                index = int(one.attribute("index"))
            elif one.opcode not in PASSES and not one.opcode.endswith("-done"):
                break
            one = instructions.get(one.operands[0]) if one.operands else None
        return self._update(body, one) if one is not None else None

    def _update(self, body: str, one: Instruction) -> tuple[Instruction, bool]:
        """(the value that is written into a slice, True); without a slice (the
        instruction, False).
        """
        inside, instructions = one, self.code.bodies[body]
        if one.opcode == "fusion":
            fused = self.code.bodies.get(one.attribute("calls").lstrip("%"), {})
            inside = next((each for each in fused.values() if each.opcode == "dynamic-update-slice"), one)
            instructions = instructions if inside is one else fused
        if inside.opcode not in ("dynamic-update-slice", "dynamic-update-slice-start"):
            return self._named(one), False
        update = instructions.get(inside.operands[1])
        while update is not None and not telling(self._named(update)):
            # The value comes from outside the fusion, so continue in the computation around it.
            if update.opcode == "parameter" and instructions is not self.code.bodies[body]:
                update, instructions = (
                    self.code.bodies[body].get(one.operands[int(update.args)]),
                    self.code.bodies[body],
                )
            else:
                update = instructions.get(update.operands[0]) if update.operands else None
        return (self._named(update) if update is not None else inside), True

    # ------------------------------------------------------------ backwards: what it is a copy of

    def _read_from(self, computation: str, one: Instruction) -> Instruction | None:
        """The nearest named instruction whose array this one copies or slices.

        The search also leaves the enclosing loop.
        """
        for _ in range(16):
            if telling(self._named(one)):
                return self._named(one)
            if one.opcode == "get-tuple-element":
                one, computation = self._element(computation, one)
            elif one.opcode in ("dynamic-update-slice", "dynamic-update-slice-start"):
                return self._update(computation, one)[0]
            elif one.operands and (one.opcode in (*READS, *SLICES) or one.opcode.endswith("-done")):
                one = self.code.bodies[computation].get(one.operands[0])
            else:
                return None
            if one is None:
                return None
        return None

    def _element(self, computation: str, one: Instruction) -> tuple[Instruction | None, str]:
        """The element of a tuple at this place; for a loop's carry, the loop's initial value."""
        index, whole = int(one.attribute("index")), self.code.bodies[computation].get(one.operands[0])
        # The tuple is the parameter of a loop's body, so continue at the loop's initial value.
        if whole is not None and whole.opcode == "parameter" and self.code.program.callers[computation]:
            caller = self.code.program.callers[computation][0][0]
            loops = (w for w in self.code.bodies[caller].values() if w.attribute("body").lstrip("%") == computation)
            loop = next(loops, None)
            whole, computation = self.code.bodies[caller].get(loop.operands[0]) if loop else None, caller
        elif whole is not None and whole.opcode == "while":
            whole = self.code.bodies[computation].get(whole.operands[0])
        if whole is None or whole.opcode != "tuple":
            return whole if whole is not None and whole.opcode != "parameter" else None, computation
        return self.code.bodies[computation].get(whole.operands[index]), computation


def telling(one: Instruction) -> bool:
    """Whether JAX gave the instruction its name: a path or an argument.

    Compilers add names such as "broadcast.311", which say nothing.
    """
    return bool(re.search(r"[/\[]", one.op_name))
