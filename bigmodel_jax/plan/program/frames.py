"""The source lines of a program's instructions, from the stack-frame tables at its head."""

import re
from typing import NamedTuple


class Call(NamedTuple):
    """One call of a stack frame, as (file, function, line)."""

    file: str
    function: str  # empty where the text has no function names
    line: str


class Frames:
    """The stack frames of a compiled program's text."""

    def __init__(self, text: str):
        first = re.search(r"^(ENTRY )?%", text, re.M)  # the first computation; the tables come before it
        head = text[: first.start() if first else 0]
        # The head has four numbered tables: file names, function names, locations (file, function,
        # line), and frames (location, parent).
        self.files = dict(re.findall(r'^(\d+) "([^"]*)"$', _table(head, "FileNames"), re.M))
        self.functions = dict(re.findall(r'^(\d+) "([^"]*)"$', _table(head, "FunctionNames"), re.M))
        self.places = {
            n: (file, function, line)
            for n, file, function, line in re.findall(
                r"^(\d+) \{file_name_id=(\d+)(?: function_name_id=(\d+))?.*? line=(\d+)",
                _table(head, "FileLocations"),
                re.M,
            )
        }
        self.frames = {
            n: (place, parent)
            for n, place, parent in re.findall(
                r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", _table(head, "StackFrames"), re.M
            )
        }

        # Some compilers number parents from 1 and others from 0. If frame 1 names itself as its
        # parent, every parent number is one too high.
        self.shift = int(self.frames.get("1", ("", ""))[1] == "1")

    def innermost(self, frame: int) -> str:
        """The line that called the operation, such as "/home/me/step.py:7"; "" if unknown."""
        return next(iter(self._lines(str(frame))), "")

    def line(self, frame: int) -> str:
        """The innermost line of a model, such as "models/llama.py:112".

        Without one, the innermost line outside installed packages, else any line.
        """
        lines = self._lines(str(frame))
        own = [line for line in lines if not any(part in line for part in ("site-packages", "/lib/python", "<"))]
        models = [line for line in own if "/bigmodel_jax/" not in line or "/models/" in line]
        chosen = next(iter(models or own or lines), "")
        return chosen.rpartition("bigmodel_jax/")[2] if "bigmodel_jax/" in chosen else chosen

    def calls(self, frame: int) -> list[Call]:
        """The calls of a frame, innermost first."""
        places = self._places(str(frame))
        return [Call(self.files.get(file, "?"), self.functions.get(name, ""), line) for file, name, line in places]

    def _lines(self, frame: str) -> list[str]:
        return [f"{self.files.get(file, '?')}:{line}" for file, _, line in self._places(frame)]

    def _places(self, frame: str) -> list[tuple[str, str, str]]:
        found = []
        # The limit guards against a cycle in damaged tables.
        while frame in self.frames and len(found) < 100:
            place, parent = self.frames[frame]
            found.append(self.places.get(place, ("", "", "")))
            if not parent:
                break
            frame = str(int(parent) - self.shift)
        return found


def _table(head: str, name: str) -> str:
    _, _, rest = head.partition(f"\n{name}\n")
    return rest.partition("\n\n")[0]
