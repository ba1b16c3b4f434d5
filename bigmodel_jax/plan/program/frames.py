"""The lines of code that a program's instructions come from: the tables of stack frames at the head of its text."""

import re
from typing import NamedTuple


class Call(NamedTuple):
    file: str
    function: str  # empty where the text has no names of functions
    line: str


class Frames:
    def __init__(self, text: str):
        first = re.search(r"^(ENTRY )?%", text, re.M)  # where the computations begin
        head = text[: first.start() if first else 0]
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

        # Some compilers number the parents from 1 where the frames start at 1: the first would be its own parent.
        self.shift = int(self.frames.get("1", ("", ""))[1] == "1")

    def innermost(self, frame: int) -> str:
        """ "/home/me/step.py:7", where the operation itself was called; empty for an unknown frame."""
        return next(iter(self._lines(str(frame))), "")

    def line(self, frame: int) -> str:
        """ "models/llama.py:112": the innermost line of a frame that is a model's, else any of this package or its user."""
        lines = self._lines(str(frame))
        own = [line for line in lines if not any(part in line for part in ("site-packages", "/lib/python", "<"))]
        models = [line for line in own if "/bigmodel_jax/" not in line or "/models/" in line]
        chosen = next(iter(models or own or lines), "")
        return chosen.rpartition("bigmodel_jax/")[2] if "bigmodel_jax/" in chosen else chosen

    def calls(self, frame: int) -> list[Call]:
        """The calls of a frame, the innermost first."""
        places = self._places(str(frame))
        return [Call(self.files.get(file, "?"), self.functions.get(name, ""), line) for file, name, line in places]

    def _lines(self, frame: str) -> list[str]:
        return [f"{self.files.get(file, '?')}:{line}" for file, _, line in self._places(frame)]

    def _places(self, frame: str) -> list[tuple[str, str, str]]:
        found = []
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
