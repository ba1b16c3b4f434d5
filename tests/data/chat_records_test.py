"""The forms in which people keep conversations, which turns are trained, tools and reasoning."""

import dataclasses
import json
import re

import numpy as np
import pytest
from rich.console import Console

from bigmodel_jax import config_file
from bigmodel_jax.data.inspect import describe, show
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import chat, chat_process, chat_records
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.data.text.prompt_data import PromptData
from bigmodel_jax.data.tokenizers import tokenizers

TEMPLATE = (
    "{% if tools %}<|im_start|>{{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content or '' }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
SHARED = [{"from": NAMES[m["role"]], "value": m["content"]} for m in TALK]
ALL, LAST = "Hello!<|im_end|>See you.<|im_end|>", "See you.<|im_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = tokenizers.make_bytes()
    made.model.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def data_of(folder, tmp_path, records, **fields):
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, records)))
    fields = {"template_path": str(folder / "chat_template.jinja"), "seq_len": 512} | fields
    return ChatData(
        source=TableFiles(*[str(tmp_path / "talks.jsonl")] * 2),
        tokenizer_path=str(folder / "tokenizer.json"),
        cache_dir=str(tmp_path / "cache"),
        packing="none",
        **fields,
    )


def trained(data) -> list[tuple[str, str]]:
    """(what is fed, what is asked for with weight) of each row, as text."""
    rows, model, out = data.open("train"), data.open_tokenizer().model, []
    for row in range(len(rows)):
        batch = {name: x[0] for name, x in rows.batch(np.array([row]), None).items()}
        fed, asked = batch["tokens"][batch["segment_ids"] > 0], batch["targets"][batch["weights"] > 0]
        out.append(tuple(model.decode(ids.tolist(), skip_special_tokens=False) for ids in (fed, asked)))
    return out


RECORDS = {
    "messages": {"messages": TALK},
    "messages in a column called conversations": {"conversations": TALK},
    "sharegpt": {"conversations": SHARED, "id": 7},
    "sharegpt in a column called messages": {"messages": SHARED},
    "sharegpt with its column system": {"conversations": SHARED[1:], "system": "Be brief."},
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(("train_on", "asked"), [("all_turns", ALL), ("last_turn", LAST)])
def test_every_form_of_a_conversation_is_one_conversation(folder, tmp_path, name, train_on, asked):
    data = data_of(folder, tmp_path, [RECORDS[name]], train_on=train_on)
    assert trained(data) == [(chat.render(TEMPLATE, TALK), asked)]
    assert describe(data)["validation"]["form"] == name.split()[0]


def test_the_data_page_shows_what_is_trained(folder, tmp_path):
    data = data_of(folder, tmp_path, [{"messages": TALK}])
    console = Console(record=True, width=200)
    show(data, console)
    page = console.export_text()
    assert "[Hello!<|im_end|>]<|im_start|>user" in page
    assert re.search(r"trained tokens +16 +16\n", page)  # "Hello!" and "See you." are a byte a token


def test_a_prompt_of_messages_is_not_trained_even_where_the_assistant_speaks_in_it(folder, tmp_path):
    data = data_of(folder, tmp_path, [{"prompt": TALK[:4], "completion": TALK[4:]}])
    assert trained(data) == [(chat.render(TEMPLATE, TALK), LAST)]
    marked = TEMPLATE.replace("\n{% if m.reas", "\n{% generation %}{% if m.reas").replace(
        "<|im_end|>{% endfor", "<|im_end|>{% endgeneration %}{% endfor"
    )
    # Every message stands between marks, the user's, too: those of the prompt are left out all the
    # same.
    (tmp_path / "marked.jinja").write_text(marked)
    assert trained(dataclasses.replace(data, template_path=str(tmp_path / "marked.jinja")))[0][1] == LAST


def test_prompt_and_completion_in_columns_of_other_names_are_a_question_and_its_answer(folder, tmp_path):
    data = data_of(folder, tmp_path, [{"ask": "Hi", "say": "Hello!"}], prompt_field="ask", completion_field="say")
    assert trained(data) == [(chat.render(TEMPLATE, TALK[1:3]), "Hello!<|im_end|>")]


def test_what_was_prepared_from_other_columns_is_not_read_again(folder, tmp_path):
    records = [{"prompt": "Hi", "short": "Hello!", "long": "Hello to you!"}]
    for name, asked in (("short", "Hello!"), ("long", "Hello to you!")):
        data = data_of(folder, tmp_path, records, completion_field=name)
        assert trained(data)[0][1] == f"{asked}<|im_end|>"


def test_without_a_template_a_prompt_and_its_completion_are_one_text(folder, tmp_path):
    records = [{"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "2 + 3 =", "completion": ""}]
    data = data_of(folder, tmp_path, records, template_path="")
    end = "<|endoftext|>"
    assert trained(data) == [(f"{end}2 + 2 = 4", f" 4{end}"), (f"{end}2 + 3 =", end)]
    with pytest.raises(ValueError, match=r"line 1: messages need a chat template, and data\.template_path is empty"):
        data_of(folder, tmp_path, [{"messages": TALK}], template_path="").open("train")
    spelled = [{"prompt": "a<|im_end|>", "completion": "b"}]
    with pytest.raises(ValueError, match=r"a message holds '<\|im_end\|>', a control token"):
        data_of(folder, tmp_path, spelled, template_path="").open("train")
    data.save_artifacts(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()


def test_a_record_of_another_form_is_a_bad_record_with_its_reason(folder, tmp_path):
    records = [{"messages": TALK}, {"conversations": SHARED}, {"prompt": "Hi", "completion": "Hello!"}, {"text": "a"}]
    rows = data_of(folder, tmp_path, records, max_bad_records=3).open("train")
    said = [reason for _, reason in rows.meta["bad_records"]]
    assert said[0] == "it has the form 'sharegpt', and the records before it have the form 'messages' (data.form)"
    assert "the form 'prompt_completion', and the records before it" in said[1]
    assert said[2].startswith(
        "no field 'messages' or 'conversations', and not both 'prompt' and 'completion'; its fields:"
    )
    named = data_of(folder, tmp_path, records, max_bad_records=3, form="sharegpt")
    assert trained(named) == [(chat.render(TEMPLATE, TALK), ALL)]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": "Hi"}, "its 'messages' is no list of messages"),
        ({"messages": []}, "the assistant says nothing; its roles: none"),
        ({"messages": [{"role": "user", "text": "Hi"}]}, "a message lacks its role or content; its keys: role, text"),
        ({"messages": [{"role": "bot", "content": "Hi"}]}, "the assistant says nothing; its roles: bot"),
        ({"messages": [*TALK[:2], {"role": "assistant", "content": None}]}, "a message lacks its role or content"),
        ({"conversations": [{"from": "humam", "value": "Hi"}]}, "from 'humam' .*perhaps you meant 'human'.*known:"),
        ({"conversations": [*SHARED, TALK[0]]}, "a message lacks 'from' or 'value'; its keys: role, content"),
        ({"conversations": [{"from": ["gpt"], "value": "Hi"}]}, "from .'gpt'.*known: human"),
        ({"messages": [{"role": "assistant", "content": 5}]}, "a message whose content is no text but int"),
        ({"messages": [{"role": None, "content": "Hi"}]}, "a message whose role is no text but NoneType"),
        ({"prompt": "Hi", "completion": TALK[4:]}, "its 'prompt' is no list of messages"),
        ({"prompt": TALK, "completion": TALK[:2]}, "the assistant says nothing; its roles: system, user"),
        ({"messages": TALK, "tools": "[{"}, "its 'tools' is no JSON"),
        ({"messages": TALK, "tools": {"name": "add"}}, "its 'tools' is no list of tools"),
        ({"messages": TALK, "tools": [{"<|im_end|>": 1}]}, r"a message holds '<\|im_end\|>', a control token"),
        ({"messages": [*TALK[:4], TALK[4] | {"weight": 0}]}, r"a message has weight 0; supported: 1 \(data\.train_on"),
        ({"conversations": [*SHARED[:4], SHARED[4] | {"weight": 0}]}, "a message has weight 0"),
        (
            {"messages": [TALK[2] | {"content": [{"type": "image_url"}]}]},
            "a part of type 'image_url', and this data reads",
        ),
        ({"conversations": SHARED[1:], "system": 5}, "a message whose content is no text but int"),
        (
            {"messages": TALK, "chat_template_kwargs": {"enable_thinking": False}},
            "it has 'chat_template_kwargs', which",
        ),
        ({"messages": [TALK[1], TALK[2] | {"function_call": {"name": "add"}}]}, "'function_call', which this template"),
    ],
)
def test_a_record_that_cannot_be_used_is_one_line(folder, tmp_path, record, reason):
    with pytest.raises(ValueError, match=reason) as error:
        data_of(folder, tmp_path, [record]).open("train")
    assert "\n" not in str(error.value)
    assert "talks.jsonl line 1: " in str(error.value)


def test_tools_reach_the_template_and_their_answers_are_not_trained(folder, tmp_path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}
    talk = [TALK[1], call, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "Four"}]
    asked = f"{json.dumps(call['tool_calls'])}<|im_end|>Four<|im_end|>"
    for given in (tools, json.dumps(tools)):
        data = data_of(folder, tmp_path, [{"messages": talk, "tools": given}])
        assert trained(data) == [(chat.render(TEMPLATE, talk, tools=tools), asked)]
    assert json.dumps(tools) in trained(data)[0][0]


def test_tools_and_calls_that_a_template_does_not_write_are_one_line(folder, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="a message has 'tool_calls', which this template does not write$"):
        chat_records.for_template([TALK[1], call], "strip", plain)
    with pytest.raises(ValueError, match="it has tools, which this template does not write; leave them out"):
        chat_records.for_template(TALK, "keep", plain, [{"name": "add"}])
    assert chat_records.for_template(TALK, "keep", plain, None) == TALK


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("{{ f.arguments | tojson }}", '{"a": [2]}'),  # Qwen2.5 and most others
        ("{{ 'json\\n' + f.arguments }}", 'json\n{"a":[2]}'),  # DeepSeek-V3
        ("{{ 'json\\n' ~ f.arguments }}", 'json\n{"a":[2]}'),  # an object would be written as Python writes it
    ],
)
def test_arguments_in_json_text_are_objects_where_the_template_writes_objects(folder, tmp_path, written, text):
    calls = f"{{% for c in m.tool_calls %}}{{% set f = c.function %}}calls:{{{{ f.name }}}}{written}{{% endfor %}}"
    template = TEMPLATE.replace("{{ m.tool_calls | tojson }}", calls)
    path = tmp_path / "calls.jinja"
    path.write_text(template)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a":[2]}'}}]}
    data = data_of(folder, tmp_path, [{"messages": [TALK[1], call]}], template_path=str(path))
    assert trained(data)[0][1] == f"calls:add{text}<|im_end|>"


def test_a_template_is_tested_for_objects_once_and_not_with_each_record(monkeypatch, folder):
    tokenizer, rendered = tokenizers.load_tokenizer(str(folder / "tokenizer.json")), []
    whole = chat_process.render
    monkeypatch.setattr(chat_process, "render", lambda *given: rendered.append(given) or whole(*given))
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": "{}"}]}
    template, counts = TEMPLATE + "{# tested here alone #}", []
    for _ in range(2):
        rendered.clear()
        chat.prompt(template, [TALK[1], call], tokenizer)
        counts.append(len(rendered))
    assert counts == [2, 1]


def test_a_control_token_in_escapes_of_json_text_stays_text(folder):
    tokenizer = tokenizers.load_tokenizer(str(folder / "tokenizer.json"))
    call = {"name": "add", "arguments": r'{"a": "\u003c|im_end|>"}'}  # a call without "function" around it
    talk = [TALK[1], {"role": "assistant", "content": "", "tool_calls": [call]}]
    ids = chat.encode(TEMPLATE, talk, tokenizer, escape=True).ids.tolist()
    assert '{"a": "<|im_end|>"}' in tokenizer.model.decode(ids, skip_special_tokens=False)
    assert ids.count(tokenizer.control["<|im_end|>"]) == 2
    for arguments, said in (("{a: 2}", "not JSON"), ("[" * 2000 + "]" * 2000, "not JSON|nested too deeply")):
        talk[1]["tool_calls"] = [{"name": "add", "arguments": arguments}]
        with pytest.raises(ValueError, match=said):
            chat.encode(TEMPLATE, talk, tokenizer)


def test_parts_of_a_content_are_the_templates_or_one_line(folder, tmp_path):
    talk = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, TALK[2]]
    with pytest.raises(ValueError, match="line 1: chat template: it writes a list of parts as Python does"):
        data_of(folder, tmp_path, [{"messages": talk}]).open("train")
    path = tmp_path / "parts.jinja"
    path.write_text(TEMPLATE.replace("m.content or ''", "m.content if m.content is string else m.content[0].text"))
    data = data_of(folder, tmp_path, [{"messages": talk}], template_path=str(path))
    assert trained(data) == [(chat.render(TEMPLATE, TALK[1:3]), "Hello!<|im_end|>")]


REASONED = [TALK[1], {"role": "assistant", "content": "Hello!", "reasoning_content": "hm", "tool_calls": None}]


def test_reasoning_is_kept_or_stripped_and_never_lost_unsaid(folder, tmp_path):
    data = data_of(folder, tmp_path, [{"messages": REASONED}])
    assert trained(data)[0][1] == "<think>hm</think>Hello!<|im_end|>"
    assert trained(dataclasses.replace(data, reasoning="strip"))[0][1] == "Hello!<|im_end|>"
    written = [TALK[1], {"role": "assistant", "content": "<think>\nhm</think>\n\nHello!"}]
    data = data_of(folder, tmp_path, [{"messages": written}])
    assert trained(data)[0][1] == "<think>\nhm</think>\n\nHello!<|im_end|>"
    assert trained(dataclasses.replace(data, reasoning="strip"))[0][1] == "Hello!<|im_end|>"
    with pytest.raises(ValueError, match=r"'reasoning_content', which this template does not write; data\.reasoning ="):
        chat_records.for_template(REASONED, "keep", "{{ messages }}")
    with pytest.raises(ValueError, match="'reasoning_content', which this template does not write$"):
        PromptData().tokens(None, "{{ messages }}", REASONED)


def test_reasoning_in_a_part_is_that_of_a_key():
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "<think>hm</think>Hello!"}, "Bye"]
    messages = [TALK[1], {"role": "assistant", "content": parts}]
    with pytest.raises(ValueError, match="a message has 'thinking', which this template does not write"):
        chat_records.for_template(messages, "keep", "{{ messages }}")
    assert chat_records.for_template(messages, "keep", "{{ part.thinking }}") == messages
    stripped = chat_records.for_template(messages, "strip", "{{ messages }}")
    assert stripped[1]["content"] == [{"type": "text", "text": "Hello!"}, "Bye"]


@pytest.mark.parametrize(
    ("name", "template"),
    [("reasoning", "{{ m.reasoning_content }}"), ("thinking", "{% if enable_thinking %}{{ m.content }}{% endif %}")],
)
def test_a_longer_name_in_the_template_does_not_read_the_reasoning(name, template):
    messages = [{"role": "assistant", "content": "4", name: "2 and 2"}]
    with pytest.raises(ValueError, match=rf"a message has '{name}', which this template does not write"):
        chat_records.for_template(messages, "keep", template)


def test_a_template_without_an_assistant_is_one_line(folder, tmp_path):
    for n, template in enumerate(
        ["", "{{ messages[0].content }}", "{% for m in messages if m.role == 'user' %}{% endfor %}"]
    ):
        path = tmp_path / f"{n}.jinja"
        path.write_text(template)
        data = data_of(folder, tmp_path, [{"messages": TALK}], template_path=str(path), max_bad_records=9)
        with pytest.raises(
            ValueError, match=r"data\.template_path = '.*jinja': it has no assistant: the template leaves out"
        ):
            data.open("train")


def test_an_empty_answer_is_trained_to_end_at_once_or_is_a_bad_record(folder, tmp_path):
    talk = [TALK[1], {"role": "assistant", "content": ""}]
    data = data_of(folder, tmp_path, [{"messages": talk}])
    assert trained(data)[0][1] == "<|im_end|>"
    (tmp_path / "no_end.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    data = dataclasses.replace(data, template_path=str(tmp_path / "no_end.jinja"))
    with pytest.raises(ValueError, match="the template writes nothing of an answer of the assistant"):
        data.open("train")


def test_the_last_turn_of_a_template_that_rewrites_the_past_is_one_sample(folder, tmp_path):
    path = tmp_path / "rewrites.jinja"
    path.write_text(
        "{% for m in messages %}[{{ m.content if loop.last or m.role == 'user' else m.content | lower }}]{% endfor %}"
    )
    data = data_of(folder, tmp_path, [{"messages": TALK[1:]}], template_path=str(path))
    assert [asked for _, asked in trained(data)] == ["[Hello!]<|endoftext|>", "[See you.]<|endoftext|>"]
    last = dataclasses.replace(data, train_on="last_turn")
    assert trained(last) == [("[Hi][hello!][Bye][See you.]", "[See you.]<|endoftext|>")]


NEW = ("form", "prompt_field", "completion_field", "tools_field", "train_on", "reasoning")


def test_a_config_from_before_these_fields_still_opens(folder, tmp_path):
    data = data_of(folder, tmp_path, [{"messages": TALK}])
    written = config_file.to_json(data)
    assert config_file.from_json({name: x for name, x in written.items() if name not in NEW}) == data
