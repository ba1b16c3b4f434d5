"""Split a compiled program's text into computations, and count how often each one runs."""

import collections
import functools
import re

from bigmodel_jax.plan.program.frames import Frames

_CALLS = re.compile(
    r"\b(?:calls|body|condition|to_apply|called_computations|branch_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|[^,\s]+)"
)


class Program:
    """The text of a compiled program.

    computations: {name: its lines}. entry: name of the computation that runs first. partitions: how
    many devices the program is compiled for, counted within one slice. open_ended: the number of
    loops whose length depends on data. `times` counts one iteration of each.
    """

    def __init__(self, text: str):
        self.computations, self.entry = _split(text)
        self.partitions = int((re.search(r"num_partitions=(\d+)", text[: text.find("\n")]) or [0, 1])[1])
        self.frames = Frames(text)
        # computation -> (what calls it, how often; None: it depends on data)
        self.callers: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
        self.fused: dict[str, str] = {}  # computations that a fusion calls -> the line that calls it
        self.open_ended = 0
        for name, lines in self.computations.items():
            for line in lines:
                self._note_calls(name, line)

    def _note_calls(self, name: str, line: str) -> None:
        """Record which computations a line calls, and how often."""
        if " while(" in line:
            body, condition = (re.search(rf"{key}=%?([\w.\-]+)", line)[1] for key in ("body", "condition"))
            times = trip_count(line, self.computations[condition])
            self.open_ended += times is None
            self.callers[body].append((name, times))
            # The condition runs once more than the body: the last time, it ends the loop.
            self.callers[condition].append((name, None if times is None else times + 1))
            return
        callees = self._callees(line)
        # Which branch a conditional takes is unknown, so the longest one counts.
        if " conditional(" in line and callees:
            callees = [max(callees, key=self._length)]
        for callee in callees:
            self.callers[callee].append((name, 1))
            if " fusion(" in line or " fusion-start(" in line:
                self.fused[callee] = line

    def _callees(self, line: str) -> list[str]:
        names = (name for found in _CALLS.findall(line) for name in re.findall(r"[\w.\-]+", found))
        return [name for name in names if name in self.computations]

    @functools.cache  # noqa: B019
    def _length(self, name: str) -> int:
        """How many lines a computation and everything that it calls has."""
        lines = self.computations[name]
        return len(lines) + sum(self._length(callee) for line in lines for callee in self._callees(line))

    @functools.cache  # noqa: B019 - lives as long as its program
    def times(self, name: str) -> int:
        """How often one run of the program runs this computation.

        Only the longest branch of a conditional counts.
        """
        return (
            1
            if name == self.entry
            else sum(self.times(caller) * (1 if n is None else n) for caller, n in self.callers[name])
        )

    @functools.cache  # noqa: B019
    def is_counted(self, name: str) -> bool:
        """Whether the text states the length of every loop around this computation."""
        return all(n is not None and self.is_counted(caller) for caller, n in self.callers[name])

    def owner(self, name: str) -> str:
        """The computation that contains a fused one, directly or through other fusions."""
        while name in self.fused:
            name = self.callers[name][0][0]
        return name

    def source(self, line: str, computation: str) -> str:
        """The JAX operation and source line of a line: "jit(step)/.../dot_general llama.py:109"."""
        name = re.search(r'op_name="([^"]*)"', line)
        if name is None and computation in self.fused:
            return self.source(self.fused[computation], self.owner(computation))
        frame = re.search(r"stack_frame_id=(\d+)", line)
        file, number = (re.search(p, line) for p in (r'source_file="([^"]*)"', r"source_line=(\d+)"))
        where = self.frames.innermost(int(frame[1])) if frame else f"{file[1]}:{number[1]}" if file and number else ""
        return f"{name[1] if name else ''} {where}".strip()


def _split(text: str) -> tuple[dict[str, list[str]], str | None]:
    out: dict[str, list[str]] = {}
    current, entry = None, None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = out[head[2]] = []
            entry = head[2] if head[1] else entry
        elif line.rstrip() == "}":  # not "}}", which ends a kernel's configuration of several lines
            current = None
        elif current is not None:
            current.append(line.strip())
    return out, entry


def trip_count(line: str, condition: list[str]) -> int | None:
    """How often a while loop runs its body: its annotation, else the bound in its condition.

    It is None if the text has neither: the length depends on data.
    """
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
    if known:
        return int(known[1])
    # The condition compares a counter with a constant.
    constants: dict[str, int] = {}
    for each in condition:
        constants |= {n: int(v) for n, v in re.findall(r"%(\S+) = [su]32\[\]\S* constant\((-?\d+)\)", each)}
    for each in condition:
        compare = re.search(r"compare\((.*?)\), direction=", each)
        bounds = [constants[n] for n in re.findall(r"%([\w.\-]+)", compare[1]) if n in constants] if compare else []
        if bounds:
            return bounds[0]
    # Without a comparison in the text, the largest constant is taken as the bound.
    return max(constants.values(), default=None)
