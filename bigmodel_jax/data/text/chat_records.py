"""Reads the common record formats of conversations into messages, tools, and the trained turns.

| form | columns |
| --- | --- |
| messages | a list of {"role", "content"}, as the OpenAI API and transformers have it |
| sharegpt | a list of {"from", "value"} |
| prompt_completion | two texts, or two lists of messages |
"""

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from bigmodel_jax.core.spelling import nearest
from bigmodel_jax.data.text.chat_quoted import Message

Form = Literal["messages", "prompt_completion", "sharegpt"]
Reasoning = Literal["keep", "strip"]

# ShareGPT's speakers, and their roles in a chat template.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ROLES |= {"tool": "tool", "observation": "tool"}
# The keys under which a message carries reasoning besides its content: DeepSeek and Qwen, vLLM,
# gpt-oss.
REASONING = ("reasoning_content", "reasoning", "thinking")
THOUGHT = "<think>", "</think>"
CALLS = ("tool_calls", "function_call")
MEDIA = ("image", "video", "audio", "input_audio")  # how the types of parts begin that are no text


class Conversation(NamedTuple):
    """One conversation.

    - messages: each with a role.
    - tools: the tools for the template, or None.
    - first: assistant messages from this one on are trained on.
    """

    messages: list[Message]
    tools: list | None = None
    first: int = 0


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of a record's columns."""

    messages: str = "messages"
    conversations: str = "conversations"
    prompt: str = "prompt"
    completion: str = "completion"
    tools: str = "tools"


def form_of(record: dict[str, Any], columns: Columns) -> Form | None:
    """Return the form of a record by its columns; None for a record in none of the three forms.

    Either column of lists may hold either form of messages. The key that names the first message's
    speaker decides.
    """
    for name in (columns.messages, columns.conversations):
        # Tables give every record every column, and None where the record has no value.
        if record.get(name) is not None:
            first = record[name][0] if isinstance(record[name], list) and record[name] else None
            return "sharegpt" if isinstance(first, dict) and "from" in first else "messages"
    pair = (columns.prompt, columns.completion)
    return "prompt_completion" if all(record.get(name) is not None for name in pair) else None


def read(record: dict[str, Any], form: Form, columns: Columns) -> Conversation:
    """Return the conversation in a record of `form`. Raises ValueError for any other record."""
    found = form_of(record, columns)
    if found is None:
        raise ValueError(_no_form(record, columns))
    if found != form:
        raise ValueError(f"it has the form {found!r}, and the records before it have the form {form!r} (data.form)")
    messages, first = READERS[form](record, columns)
    reason = _wrong(messages, first)
    if reason:
        raise ValueError(reason)
    return Conversation(messages, tools_of(record, columns.tools), first)


def is_text(record: dict[str, Any], columns: Columns) -> bool:
    """Tell whether prompt and completion of a record are texts and not messages."""
    return all(isinstance(record.get(name), str) for name in (columns.prompt, columns.completion))


# ---------------------------------------------------------------- one form each


def _messages(record: dict, columns: Columns) -> tuple[list[Message], int]:
    """Return (messages, 0) of a record with a list of messages."""
    name = columns.messages if record.get(columns.messages) is not None else columns.conversations
    return _listed(record[name], name), 0


def _sharegpt(record: dict, columns: Columns) -> tuple[list[Message], int]:
    """Return (messages, 0) of a record in ShareGPT's form, whose column `system` comes first."""
    turns, _ = _messages(record, columns)
    out = [of_sharegpt(turn) for turn in turns]
    return ([{"role": "system", "content": record["system"]}] if record.get("system") else []) + out, 0


def of_sharegpt(turn: dict) -> Message:
    """Return the message of a ShareGPT turn with its other keys; raises ValueError where there is
    none.
    """
    if not {"from", "value"} <= turn.keys():
        raise ValueError(f"a message lacks 'from' or 'value'; its keys: {', '.join(map(str, turn)) or 'none'}")
    if not isinstance(turn["from"], str) or turn["from"] not in ROLES:
        near = nearest(str(turn["from"]), ROLES)
        raise ValueError(f"a message is from {turn['from']!r}{near}; known: {', '.join(ROLES)}")
    others = {name: x for name, x in turn.items() if name not in ("from", "value")}
    return others | {"role": ROLES[turn["from"]], "content": turn["value"]}


def _prompt_completion(record: dict, columns: Columns) -> tuple[list[Message], int]:
    """Return (messages, number of prompt messages) of a record with prompt and completion."""
    sides = record[columns.prompt], record[columns.completion]
    if is_text(record, columns):
        return [{"role": role, "content": x} for role, x in zip(("user", "assistant"), sides, strict=True)], 1
    prompt, completion = (_listed(x, name) for x, name in zip(sides, (columns.prompt, columns.completion), strict=True))
    return prompt + completion, len(prompt)


READERS: dict[str, Callable[[dict, Columns], tuple[list[Message], int]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
}


def _listed(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"its {name!r} is no list of messages")
    return value


def _no_form(record: dict, columns: Columns) -> str:
    has = ", ".join(map(str, record))[:100] or "none"
    return (
        f"no field {columns.messages!r} or {columns.conversations!r}, and not both {columns.prompt!r} and "
        f"{columns.completion!r}; its fields: {has} (data.messages_field, prompt_field and completion_field name others)"
    )


# ---------------------------------------------------------------- what a message may be


def _wrong(messages: list[Message], first: int) -> str:
    """Return why messages are unusable; "" where they are usable."""
    if reason := unusable(messages):
        return reason
    if any(m["role"] == "assistant" for m in messages[first:]):
        return ""
    roles = list(dict.fromkeys(str(m["role"]) for m in messages[first:]))
    return f"the assistant says nothing; its roles: {', '.join(roles) or 'none'}"


def unusable(messages: list[Message]) -> str:
    """Return why the first unusable message is unusable; "" where all are usable."""
    return next(filter(None, map(_wrong_message, messages)), "")


def _wrong_message(m: Message) -> str:
    """Return why a message is unusable; "" where it is usable."""
    # A tool call may replace the content.
    if "role" not in m or (m.get("content") is None and not m.get("tool_calls")):
        return f"a message lacks its role or content; its keys: {', '.join(map(str, m)) or 'none'}"
    # Some templates read a list of parts as content.
    for name, allowed in (("role", str), ("content", str | list | None)):
        if not isinstance(m.get(name), allowed):
            return f"a message whose {name} is no text but {type(m[name]).__name__}"
    if media := next((kind for kind in _types(m) if kind.startswith(MEDIA)), ""):
        return f"a message has a part of type {media!r}, and this data reads text alone"
    # OpenAI's files leave a turn out of the loss by weight 0.
    if m.get("weight") not in (None, 1):
        return f"a message has weight {m['weight']!r}; supported: 1 (data.train_on says which turns are trained)"
    return ""


def _types(m: Message) -> list[str]:
    """Return the types of the parts of a content; [] for a text."""
    content = m.get("content")
    return [str(part.get("type")) for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def tools_of(record: dict[str, Any], name: str) -> list | None:
    """Return a record's tools as a list. Tables may hold it as JSON text."""
    if record.get("chat_template_kwargs"):
        raise ValueError("it has 'chat_template_kwargs', which are not supported; set them in the template's text")
    value = record.get(name)
    if isinstance(value, str):
        try:
            # A CSV cell without tools is an empty text, which is no JSON.
            value = json.loads(value or "null")
        except json.JSONDecodeError as error:
            raise ValueError(f"its {name!r} is no JSON ({error})") from None
    if value is not None and not isinstance(value, list):
        raise ValueError(f"its {name!r} is no list of tools")
    return value or None


def for_template(
    messages: list[Message], reasoning: Reasoning | None, template: str, tools: list | None = None
) -> list[Message]:
    """Return the messages that the template gets.

    reasoning: "keep" keeps the reasoning in the messages, and "strip" removes it. None keeps it as
    well. The data then have no option `reasoning`, so no error names one.

    Raises ValueError where the template never reads reasoning, tool calls or tools that it should
    get, since they would be lost silently.
    """
    messages = [_stripped(m) if reasoning == "strip" else m for m in map(present, messages)]
    # Whole words: a template that reads `reasoning_content` does not read `reasoning`.
    read = {name for name in (*REASONING, *CALLS, "tools") if re.search(rf"\b{name}\b", template)}
    held = {name for m in messages for name in (*(key for key, x in m.items() if x), *_types(m))}
    if lost := next((name for name in (*REASONING, *CALLS) if name in held - read), ""):
        drops = "; data.reasoning = 'strip' drops it" if lost in REASONING and reasoning else ""
        raise ValueError(f"a message has {lost!r}, which this template does not write{drops}")
    if tools and "tools" not in read:
        raise ValueError("it has tools, which this template does not write; leave them out")
    return messages


def present(m: Message) -> Message:
    """Return the message without keys of the value None; tables give every message every key."""
    return {name: x for name, x in m.items() if x is not None or name == "content"}


def _stripped(message: Message) -> Message:
    kept = {name: x for name, x in message.items() if name not in REASONING}
    content = kept.get("content")
    if kept["role"] != "assistant" or not content:
        return kept
    if isinstance(content, str):
        return kept | {"content": _unthought(content)}
    return kept | {"content": [_unthought(part) for part in content if not _is_reasoning(part)]}


def _is_reasoning(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in REASONING


def _unthought(part: Any) -> Any:
    """Return a text, or a part with a text, without the reasoning with which it begins."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part | {"text": _unthought(part["text"])}
    begin, end = THOUGHT
    if isinstance(part, str) and part.lstrip().startswith(begin) and end in part:
        return part.split(end, 1)[1].lstrip()
    return part
