"""Prepares messages for a chat template: arguments of tool calls become objects, and control tokens
plain text.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

Message = dict[str, Any]  # {"role": "user" | "assistant" | "system", "content": ...}

# Marks inside a rendered text: BEGIN and END surround {% generation %}, QUOTE and UNQUOTE surround
# text in a message that looks like a control token. Unicode reserves these code points for internal
# use, so no text holds them.
BEGIN, END, QUOTE, UNQUOTE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
MARKS = re.compile("[\ufdd0-\ufdd3]")


def with_objects(message: Message) -> Message:
    """Return the message with the arguments of its tool calls as objects.

    OpenAI's form has them as JSON text. Raises ValueError for another text.
    """
    calls = message.get("tool_calls")
    return message | {"tool_calls": list(map(_with_object, calls))} if isinstance(calls, list) else message


def _with_object(call: Any) -> Any:
    # Some files have a call's name and arguments without "function" around them.
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        function = function | {"arguments": json.loads(function["arguments"] or "{}")}
    except (ValueError, RecursionError):
        raise ValueError("the arguments of a tool call are not JSON") from None
    return call | {"function": function} if "function" in call else function


def _quoted(value: Any, control: re.Pattern) -> Any:
    """Return the same messages with marks around every control token in their strings."""
    if isinstance(value, str):
        return control.sub(f"{QUOTE}\\g<0>{UNQUOTE}", MARKS.sub("", value))
    if isinstance(value, dict):
        return {_quoted(name, control): _quoted(x, control) for name, x in value.items()}
    return [_quoted(x, control) for x in value] if isinstance(value, list) else value


def quote(messages: Sequence[Any], tokenizer: Tokenizer, *, escape: bool) -> list:
    """Return messages, tools or texts whose control tokens are marked as plain text.

    Without `escape`, a control token raises ValueError.
    """
    # The first alternative that matches wins, so a token must stand before its own beginnings.
    longest_first = sorted(tokenizer.control, key=len, reverse=True)
    # (?!) matches nothing. It serves tokenizers without control tokens.
    try:
        out = _quoted(list(messages), re.compile("|".join(map(re.escape, longest_first)) or "(?!)"))
    except RecursionError:
        raise ValueError("a message is nested too deeply") from None
    found = re.search(f"{QUOTE}(.*?){UNQUOTE}", json.dumps(out, ensure_ascii=False), re.DOTALL)
    if found and not escape:
        raise ValueError(
            f"a message holds {found[1]!r}, a control token of this tokenizer; data.control_tokens = 'escape' reads it as text"
        )
    return out
