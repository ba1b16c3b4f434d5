"""JSON Lines files of questions about images.

A line is {"image": "a.png", "prompt": "What is it?", "answer": "A cat."}, where the prompt is
optional, or {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"},
{"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A cat."}]}. Messages
must have one image, one question and one answer.
"""

import dataclasses
from pathlib import Path
from typing import Any

from bigmodel_jax.data.base import lacks
from bigmodel_jax.data.sources.lines import parse_json, read_lines
from bigmodel_jax.data.sources.sources import Listings

VIDEO = ("video", "video_url")


@dataclasses.dataclass(frozen=True)
class ImageChatFiles(Listings):
    """Images with questions and answers. Image paths are relative to the file's folder.

    A record has image (a path), prompt ("" where the line has none) and text (the answer).
    """

    image_field: str = "image"
    "the field with the image's path"
    prompt_field: str = "prompt"
    "the field with the question"
    answer_field: str = "answer"
    "the field with the answer"
    messages_field: str = "messages"
    "the field with the messages; a line that has it is read in the second form"

    def records(self, split, root, bad):
        for path in self.paths(split):
            for number, line, reason in read_lines(path):
                where = f"{path} line {number}"
                if reason:
                    bad.skip(where, reason)
                    continue
                try:
                    yield where, self._record(line, path.parent)
                except ValueError as error:
                    bad.skip(where, str(error))

    def _record(self, line: bytes, folder: Path) -> dict[str, Any]:
        """Return the record of a line. Raises ValueError with what makes the line unusable."""
        row, reason = parse_json(line)
        if reason or not isinstance(row, dict):
            raise ValueError(reason or f"a JSON object is needed, not {type(row).__name__}")
        image, prompt, answer = self._of_messages(row) if self.messages_field in row else self._of_fields(row)
        picture = folder / text(image, "its picture")
        if not picture.is_file():
            raise ValueError(f"no such picture: {picture}")
        if not text(answer, "its answer").strip():
            raise ValueError("its answer is empty")
        return {"image": picture, "prompt": text(prompt, "its prompt"), "text": answer}

    def _of_fields(self, row: dict) -> tuple[Any, Any, Any]:
        """Return (image, prompt, answer) of a line with plain fields."""
        if missing := lacks(row, self.image_field, self.answer_field):
            raise ValueError(missing)
        return row[self.image_field], row.get(self.prompt_field, ""), row[self.answer_field]

    def _of_messages(self, row: dict) -> tuple[Any, Any, Any]:
        """Return (image, prompt, answer) of a line with messages."""
        messages = row[self.messages_field]
        listed = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
        roles = [m.get("role") for m in messages] if listed else []
        if roles != ["user", "assistant"]:
            raise ValueError(
                f"its messages are of {roles or type(messages).__name__}; it must have one of a user and one of the assistant"
            )
        parts = messages[0].get("content")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ValueError("its user's message is no list of parts, and holds no image")
        kinds = [part.get("type") for part in parts]
        if wrong := [kind for kind in kinds if kind not in ("image", "text")]:
            hint = "; videos are not read" if wrong[0] in VIDEO else ""
            raise ValueError(f"it has a part of type {wrong[0]!r}; allowed: image, text{hint}")
        if kinds.count("image") != 1:
            raise ValueError(f"its user's message has {kinds.count('image')} images; it must have 1")
        prompt = "".join(text(part.get("text"), "a text part") for part in parts if part["type"] == "text")
        return next(part.get("image") for part in parts if part["type"] == "image"), prompt, messages[1].get("content")


def text(value: Any, what: str) -> str:
    """Return a value that must be a text. Raises ValueError for any other type."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text but {type(value).__name__}")
    return value
