"""Answers held to a form: a model with random weights writes valid JSON, and forms that explode are
refused."""

import json
import re
import resource
import time

import pytest

from servers import running, tiny_served

SCHEMA = {
    "type": "object",
    "properties": {
        "sure": {"type": "boolean"},
        "kind": {"enum": ["x", "y"]},
        "num": {"type": "integer", "minimum": 3, "maximum": 11},
    },
    "required": ["sure", "kind", "num"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
ASKED = {"model": "tiny", "temperature": 1.5, "seed": 1, "max_tokens": 400}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "description": "It does it."}}
    for name in ("first", "second")
]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{# <think> #}"
)


@pytest.fixture(scope="module")
def with_tools():
    with running(tiny_served(template=TEMPLATE, length=2048)) as found:
        yield found


def check(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"sure", "kind", "num"}
    assert isinstance(found["sure"], bool)
    assert found["kind"] in "xy"
    assert 3 <= found["num"] <= 11


@pytest.mark.slow
def test_a_schema_holds_chats_and_completions(with_tools):
    client = with_tools.client()
    messages = [{"role": "user", "content": "Answer."}]
    said = client.chat.completions.create(messages=messages, response_format=FORMAT, n=3, **ASKED)
    for choice in said.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content)
    more = {"response_format": FORMAT}
    chunks = list(client.completions.create(prompt="a", stream=True, extra_body=more, **ASKED))
    check("".join(chunk.choices[0].text for chunk in chunks))


@pytest.mark.slow
def test_a_regex_holds_and_texts_beside_it_are_as_ever(server):
    client = server.client()
    alone = client.completions.create(prompt="beside", model="tiny", temperature=0, max_tokens=40).choices[0].text
    held = {"regex": "(yes|no), [0-9]{3}"}
    with client.completions.with_streaming_response.create(
        prompt="beside", model="tiny", temperature=0, max_tokens=40, stream=True
    ) as beside:
        said = client.completions.create(prompt="a", n=2, extra_body=held, **ASKED | {"max_tokens": 40})
        lines = [line.removeprefix("data: ") for line in beside.iter_lines() if line.startswith("data: {")]
    for choice in said.choices:
        assert re.fullmatch(held["regex"], choice.text)
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == alone
    cut = client.completions.create(prompt="a", extra_body=held, **ASKED | {"max_tokens": 2}).choices[0]
    assert cut.finish_reason == "length"


EXPLODING = {
    "regex of regexes": ("regex", "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"),
    "regex with a long tail": ("regex", "(a|b)*a(a|b){400}"),
    "regex of words": ("regex", "(\\w{1,2000}\\W{1,2000}){2000}"),
    "long regex": ("regex", "a" * 5000),
    "broken regex": ("regex", "(a"),
    "lookbehind": ("regex", "(?<=a)b"),
    "large schema": ("schema", {"enum": [f"{n:09}" for n in range(5000)]}),
    "schema of a regex": ("schema", {"type": "string", "pattern": "^(a|b)*a(a|b){400}$"}),
    "doubling schema": (
        "schema",
        {"$ref": "#/$defs/0", "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 9} for n in range(40)}},
    ),
    "schema of itself": ("schema", {"$ref": "#"}),
    "schema from elsewhere": ("schema", {"$ref": "file:///etc/passwd"}),
    "no schema": ("schema", {"type": "wizard"}),
}


@pytest.mark.parametrize("name", EXPLODING)
def test_a_form_that_explodes_is_refused_in_bounded_time_and_memory(server, name):
    """A form that is merely large may be obeyed; the time and the memory are bounded either way."""
    kind, form = EXPLODING[name]
    body = (
        {"regex": form}
        if kind == "regex"
        else {"response_format": {"type": "json_schema", "json_schema": {"schema": form}}}
    )
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = server.post("/v1/completions", prompt="a", **ASKED | {"max_tokens": 8}, **body)
    assert said.status_code in (200, 400, 422), said.text
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    if said.status_code != 200:
        assert "\n" not in said.json()["error"]["message"]
    if name in ("long regex", "broken regex", "schema from elsewhere", "no schema", "large schema"):
        assert said.status_code == 400
    assert server.idle()


def test_forms_that_do_not_fit_together_are_named(server):
    for more, said in (
        ({"regex": "a", "response_format": FORMAT}, "an answer is held to one of them"),
        ({"regex": "a", "ignore_eos": True}, "ends where the form does"),
        ({"response_format": {"type": "xml"}}, "response_format.type = 'xml'; allowed: text, json_object, json_schema"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "response_format.schema does not belong to the type 'json_object'; allowed: type",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is no JSON schema"),
    ):
        found = server.post("/v1/completions", prompt="a", **ASKED | {"max_tokens": 40}, **more)
        assert found.status_code == 400
        assert said in found.json()["error"]["message"]


@pytest.mark.few("required")
@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "second"}}])
def test_a_tool_that_must_be_called_is_called(with_tools, choice):
    client = with_tools.client()
    messages = [{"role": "user", "content": "Call."}]
    asked = {"messages": messages, "tools": TOOLS, "tool_choice": choice, **ASKED}
    said = client.chat.completions.create(**asked).choices[0]
    assert said.finish_reason == "tool_calls"
    (call,) = said.message.tool_calls
    assert call.function.name in (["first", "second"] if choice == "required" else ["second"])
    check(call.function.arguments)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(stream=True, **asked)]
    (streamed,) = [c for chunk in chunks for c in chunk.delta.tool_calls or []]
    assert streamed.function.arguments == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    assert client.chat.completions.create(messages=messages, tools=TOOLS, **ASKED | {"max_tokens": 4}).choices


def test_tools_that_cannot_be_are_named(server):
    messages = [{"role": "user", "content": "x"}]
    with running(tiny_served(template=TEMPLATE)) as with_tools:  # of the length, and so of the programs, of `server`
        for where, more, said in (
            (server, {"tools": TOOLS}, "chat template knows of no tools; leave tools out"),
            (with_tools, {"tools": [{"type": "python"}]}, "tools[0] is not of the form"),
            (with_tools, {"tool_choice": "required"}, "tool_choice asks for a call, and tools is empty"),
            (with_tools, {"tools": TOOLS, "tool_choice": "third"}, "tool_choice is not 'none', 'auto', 'required'"),
            (with_tools, {"tools": TOOLS, "tool_choice": "required", "regex": "a"}, "held to another form"),
        ):
            found = where.post("/v1/chat/completions", model="tiny", messages=messages, **more)
            assert found.status_code == 400
            assert said in found.json()["error"]["message"]
