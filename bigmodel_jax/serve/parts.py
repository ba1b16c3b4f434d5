"""Splits an assistant's text, while it is written, into reasoning, calls of tools, and content.

Reasoning stands between <think> and </think>, and a call between <tool_call> and </tool_call>, as
the templates of Qwen, Hermes and DeepSeek write them.
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
    """The splitter of one text.

    kinds: the kinds to look for (all other text is content); now: the kind of the text that comes
    next; held: text that may begin a tag, or an unfinished call.
    """

    kinds: tuple[Kind, ...]
    now: Kind = "content"
    held: str = ""

    def add(self, text: str, *, last: bool = False) -> list[tuple[Kind, str]]:
        """Adds text and returns the finished (kind, text) parts. last: no text follows.

        A call is returned in one part. Text that may be part of a tag is held back.
        """
        self.held += text
        out: list[tuple[Kind, str]] = []
        while (found := self._next_tag()) is not None:
            at, tag, after = found
            self._give(out, self.held[:at])
            # Templates write a line break after a tag, which is no part of the text.
            self.held, self.now = self.held[at + len(tag) :].removeprefix("\n"), after
        if self.now == "call" and not last:
            return out
        # The end of the text may be the beginning of a tag, which later text completes.
        keep = 0 if last else max((_begun(self.held, tag) for tag, _ in self._tags()), default=0)
        self._give(out, self.held[: len(self.held) - keep], whole=last)
        self.held = self.held[len(self.held) - keep :]
        return out

    def _give(self, out: list[tuple[Kind, str]], text: str, *, whole: bool = True) -> None:
        if text and (self.now != "call" or whole):
            out.append((self.now, text))

    def _tags(self) -> list[tuple[str, Kind]]:
        """(tag, kind of the text after it) of the tags that can come now."""
        if self.now != "content":
            return [(TAGS[self.now][1], "content")]
        return [(TAGS[kind][0], kind) for kind in self.kinds]

    def _next_tag(self) -> tuple[int, str, Kind] | None:
        places = [(at, tag, kind) for tag, kind in self._tags() if (at := self.held.find(tag)) >= 0]
        return min(places, default=None)


def _begun(text: str, tag: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def called(text: str) -> dict[str, Any] | None:
    """The call that a model wrote as JSON, in OpenAI's form; None where the text is not a call."""
    try:
        found = json.loads(text)
        name, arguments = found["name"], found.get("arguments", {})
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str):
        return None
    function = {"name": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
