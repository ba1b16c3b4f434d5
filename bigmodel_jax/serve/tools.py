"""Tools in a chat: checks of a request's tools, and the grammar of an answer that must call one."""

import json
from typing import Any

from bigmodel_jax.serve.parts import CALL
from bigmodel_jax.serve.refused import Refused

MOST_TOOLS = 128


def check(tools: Any, choice: Any) -> None:
    """Raises Refused for tools or a tool choice that do not have OpenAI's form."""
    if len(tools) > MOST_TOOLS:
        raise Refused(f"tools has {len(tools)} tools; at most {MOST_TOOLS} are allowed", "tools")
    for n, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise Refused(f'tools[{n}] is not of the form {{"type": "function", "function": {{…}}}}', f"tools[{n}]")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise Refused(f"tools[{n}].function.name is missing", f"tools[{n}].function.name")
        if not isinstance(function.get("parameters", {}), dict):
            raise Refused(f"tools[{n}].function.parameters is no JSON schema", f"tools[{n}].function.parameters")
    if choice not in ("none", "auto", "required") and _named(choice) not in [t["function"]["name"] for t in tools]:
        raise Refused(
            "tool_choice is not 'none', 'auto', 'required' or the name of one of the tools, "
            '{"type": "function", "function": {"name": …}}',
            "tool_choice",
        )
    if choice not in ("none", "auto") and not tools:
        raise Refused("tool_choice asks for a call, and tools is empty", "tool_choice")


def _named(choice: Any) -> str | None:
    """The name of the function that a tool choice names, or None."""
    function = choice.get("function") if isinstance(choice, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def must_call(tools: Any, choice: Any) -> str:
    """The grammar, in Lark's notation, of an answer that must call a tool.

    The tool is the one that the choice names, or any. The grammar is "" where the answer need not
    call one.
    """
    if choice in ("none", "auto"):
        return ""
    name = _named(choice)
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": f["name"]}, "arguments": f.get("parameters") or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for f in functions
    ]
    begin, end = (json.dumps(text) for text in (f"{CALL[0]}\n", f"\n{CALL[1]}"))
    # Models are trained on calls with this spacing. It is fixed, because a model that may write any
    # amount of white space may not stop.
    spaced = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    return f"start: {begin} call {end}\ncall: %json {json.dumps({'anyOf': calls} | spaced)}\n"
