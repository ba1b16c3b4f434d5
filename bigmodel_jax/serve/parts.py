"""An assistant's text taken apart as it comes: its reasoning, its calls of tools, and what it says.

Reasoning stands between <think> and </think>, a call between <tool_call> and </tool_call>, as Qwen's, Hermes' and
DeepSeek's templates write them.
"""

import dataclasses
import json
import uuid
from typing import Any, Literal

Kind = Literal["content", "reasoning", "call"]
THINK, CALL = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")
TAGS: dict[str, tuple[str, str]] = {"reasoning": THINK, "call": CALL}


@dataclasses.dataclass
class Parts:
    """kinds: what is looked for; text of other kinds is content. now: the kind of the text that comes next."""

    kinds: tuple[Kind, ...]
    now: Kind = "content"
    held: str = ""

    def add(self, text: str, *, last: bool = False) -> list[tuple[Kind, str]]:
        """The parts that are sure; a call comes in one piece, and what may be a part of a tag waits."""
        self.held += text
        out: list[tuple[Kind, str]] = []
        while (found := self._next_tag()) is not None:
            at, tag, after = found
            self._give(out, self.held[:at])
            self.held, self.now = self.held[at + len(tag) :].removeprefix("\n"), after
        if self.now == "call" and not last:
            return out
        keep = 0 if last else max((_begun(self.held, tag) for tag, _ in self._tags()), default=0)
        self._give(out, self.held[: len(self.held) - keep], whole=last)
        self.held = self.held[len(self.held) - keep :]
        return out

    def _give(self, out: list[tuple[Kind, str]], text: str, *, whole: bool = True) -> None:
        if text and (self.now != "call" or whole):
            out.append((self.now, text))

    def _tags(self) -> list[tuple[str, Kind]]:
        """(tag, the kind of what follows it) of the tags that can come now."""
        if self.now != "content":
            return [(TAGS[self.now][1], "content")]
        return [(TAGS[kind][0], kind) for kind in self.kinds]

    def _next_tag(self) -> tuple[int, str, Kind] | None:
        places = [(at, tag, kind) for tag, kind in self._tags() if (at := self.held.find(tag)) >= 0]
        return min(places, default=None)


def _begun(text: str, tag: str) -> int:
    """How many last characters of the text are the first ones of the tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def called(text: str) -> dict[str, Any] | None:
    """The call that a model has written, in OpenAI's form; None where it is none."""
    try:
        found = json.loads(text)
        name, arguments = found["name"], found.get("arguments", {})
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    function = {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
