"""Chat templates as transformers renders them, and the loss on the assistant's turns."""

import dataclasses
import json

import numpy as np
import pytest

from bigmodel_jax.data.inspect import describe
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.data.sources.table_files import TableFiles
from bigmodel_jax.data.text import chat, chat_data
from bigmodel_jax.data.text.chat_data import ChatData
from bigmodel_jax.data.tokenizers import tokenizers

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = tokenizers.make_bytes()
    made.model.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(path)
    return tokenizers.load_tokenizer(path)


def test_a_template_is_rendered_as_its_authors_meant():
    text = chat.render(CHATML, TALK[:2], add_generation_prompt=True)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_blocks_are_trimmed_and_functions_are_there():
    template = "{%- for m in messages %}\n    {%- if loop.first %}[{{ m | tojson }}]\n    {%- endif %}\n{%- endfor %}"
    assert chat.render(template, [{"role": "u", "content": "é<"}]) == '[{"role": "u", "content": "é<"}]'


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "chat template: roles must alternate"),
        ("{% for %}", r"chat template: .*\(line 1\)"),
        ("{{ ''.__class__.__mro__ }}", "chat template: .*unsafe"),
    ],
)
def test_a_template_that_refuses_is_one_line(template, said):
    with pytest.raises(ValueError, match=said):
        chat.render(template, TALK)


def test_only_the_assistants_tokens_have_weight(tokenizer):
    ids, mask = chat.encode(CHATML, TALK, tokenizer)
    whole = tokenizer.encode_rendered(chat.render(CHATML, TALK))[0]
    assert ids.tolist() == whole
    said = tokenizer.model.decode(ids[mask > 0].tolist(), skip_special_tokens=False)
    assert said == "Hello!<|im_end|>\nSee you.<|im_end|>\n"


def test_a_template_that_rewrites_its_past_is_refused(tokenizer):
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        chat.encode("{{ messages | length }}{{ messages[-1].content }}", TALK, tokenizer)


def write(tmp_path, tokenizer, lines, template=CHATML, **fields):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    return ChatData(
        source=TableFiles(str(tmp_path / "talks.jsonl")),
        tokenizer_path=str(tmp_path / "tokenizer.json"),
        template_path=str(tmp_path / "chat_template.jinja"),
        cache_dir=str(tmp_path / "cache"),
        seq_len=fields.pop("seq_len", 256),
        max_bad_records=1,
        **fields,
    )


def test_packed_conversations_are_asked_for_the_assistants_words_alone(tokenizer, tmp_path):
    lines = [json.dumps({"messages": TALK}), json.dumps({"messages": TALK[1:3]}), '{"messages": [{"role": "user"']
    rows = write(tmp_path, tokenizer, lines).open("train")
    assert len(rows) == 1
    batch = rows.batch(np.array([0]), None)
    asked = batch["targets"][0][batch["weights"][0] > 0].tolist()
    said = tokenizer.model.decode(asked, skip_special_tokens=False)
    assert sorted(said.split("<|im_end|>\n")) == ["", "Hello!", "Hello!", "See you."]
    assert set(batch["segment_ids"][0]) == {0, 1, 2}
    assert {name: x.dtype.name for name, x in batch.items()} == dict.fromkeys(batch, "int32") | {"weights": "float32"}


def test_a_second_bad_line_is_named(tokenizer, tmp_path):
    data = write(tmp_path, tokenizer, ["{", json.dumps({"messages": TALK[:2]})])
    with pytest.raises(ValueError, match=r"talks.jsonl line 2: the assistant says nothing"):
        data.open("train")
    with pytest.raises(ValueError, match=r"data\.source\.validation: empty"):
        data.open("validation")


def talks():
    return {"train": {"talk": [TALK, TALK[1:3]], "source": ["a", "b"]}}


def test_any_source_of_conversations_feeds_it(tokenizer, tmp_path):
    data = write(tmp_path, tokenizer, lines(TALK, TALK[1:3]))
    other = dataclasses.replace(data, source=Arrays(talks), messages_field="talk")
    for name, x in data.open("train").batch(np.array([0]), None).items():
        np.testing.assert_array_equal(other.open("train").batch(np.array([0]), None)[name], x, name)
    with pytest.raises(ValueError, match="no field 'messages' or .*; its fields: talk, source"):
        dataclasses.replace(other, messages_field="messages", max_bad_records=0).open("train")


def said(rows, tokenizer, row=0):
    """(what a row feeds, what it asks for with weight) as text."""
    batch = rows.batch(np.array([row]), None)
    fed = batch["tokens"][0][batch["segment_ids"][0] > 0].tolist()
    asked = batch["targets"][0][batch["weights"][0] > 0].tolist()
    return tuple(tokenizer.model.decode(ids, skip_special_tokens=False) for ids in (fed, asked))


def lines(*talks):
    return [json.dumps({"messages": talk}) for talk in talks]


EOS = "{% for m in messages %}{{ '[' + m['content'] + ']' if m['role'] == 'user' else m['content'] + eos_token }}{% endfor %}"
NO_END = "{% for m in messages %}{{ '[' + m['content'] + ']' if m['role'] == 'user' else m['content'] }}{% endfor %}"


def test_an_end_of_turn_that_equals_the_separator_keeps_a_conversation_together(tokenizer, tmp_path):
    rows = write(tmp_path, tokenizer, lines(TALK[1:], TALK[1:3]), template=EOS).open("train")
    batch = rows.batch(np.array([0]), None)
    one = "[Hi]Hello!<|endoftext|>[Bye]See you.<|endoftext|>"
    length = len(tokenizer.encode_rendered(one)[0])
    assert batch["segment_ids"][0][:length].tolist() == [1] * length
    assert batch["positions"][0][:length].tolist() == list(range(length))
    assert said(rows, tokenizer) == (
        f"{one}[Hi]Hello!<|endoftext|>",
        "Hello!<|endoftext|>See you.<|endoftext|>Hello!<|endoftext|>",
    )


def test_a_row_begins_as_the_template_does(tokenizer, tmp_path):
    rows = write(tmp_path, tokenizer, lines(TALK[1:3])).open("train")
    assert said(rows, tokenizer)[0] == chat.render(CHATML, TALK[1:3])


def test_a_turn_without_an_end_is_asked_for_one(tokenizer, tmp_path):
    rows = write(tmp_path, tokenizer, lines(TALK[1:3]), template=NO_END).open("train")
    assert said(rows, tokenizer) == ("[Hi]Hello!", "Hello!<|endoftext|>")


LONG = [{"role": "user", "content": "a" * 30}, {"role": "assistant", "content": "one"}, *TALK[3:]]


def test_a_conversation_longer_than_a_row_is_left_out_and_counted(tokenizer, tmp_path, caplog):
    data = write(tmp_path, tokenizer, lines(LONG, TALK[1:3]), template=EOS, seq_len=20)
    rows = data.open("train")
    assert [said(rows, tokenizer, r)[0] for r in range(len(rows))] == ["[Hi]Hello!<|endoftext|>"]
    assert "1 of 2 samples are longer than data.seq_len = 20: dropped (data.too_long)" in caplog.text
    counts = describe(dataclasses.replace(data, source=TableFiles(data.source.train, data.source.train)))["train"]
    assert (counts["conversations"], counts["too long, dropped"], counts["too long, cut at the front"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("seq_len", "fed", "asked"),
    [
        # The last 18 tokens are: one S [Bye] See you. S, with S the separator.
        (20, "a]one<|endoftext|>[Bye]See you.<|endoftext|>", "one<|endoftext|>See you.<|endoftext|>"),
        (17, "ne<|endoftext|>[Bye]See you.<|endoftext|>", "See you.<|endoftext|>"),
        (11, "e]See you.<|endoftext|>", "See you.<|endoftext|>"),
    ],
)
def test_a_conversation_is_cut_at_its_front(tokenizer, tmp_path, seq_len, fed, asked):
    rows = write(tmp_path, tokenizer, lines(LONG), template=EOS, seq_len=seq_len, too_long="cut").open("train")
    assert len(rows) == rows.meta["cut"] == 1
    assert said(rows, tokenizer) == (fed, asked)


def test_an_answer_longer_than_a_row_is_never_asked_for_in_part(tokenizer, tmp_path):
    for packing in ("first_fit", "best_fit", "none"):
        data = write(tmp_path, tokenizer, lines(LONG), template=EOS, seq_len=9, too_long="cut", packing=packing)
        with pytest.raises(ValueError, match=r"data\.seq_len = 9: every conversation of .* is longer"):
            data.open("train")
    data = dataclasses.replace(data, packing="concat")
    with pytest.raises(ValueError, match=r"data\.packing = 'concat'.*allowed: 'first_fit', 'best_fit', 'none'"):
        data.open("train")


def test_a_cut_keeps_the_token_that_begins_a_text():
    stream = chat_data.Stream(np.array([9, 1, 2, 3, 4, 5, 0]), np.array([0.0, 0, 0, 0, 1, 1, 0]), np.array([0, 7]))
    starts, lengths, counts = chat_data.fit(stream, 4, "cut", 9)
    assert (starts.tolist(), lengths.tolist(), counts) == ([2], [4], {"dropped": 0, "cut": 1})
    assert stream.tokens[2:6].tolist() == [9, 3, 4, 5]
    starts, _, counts = chat_data.fit(stream, 3, "cut", 9)
    assert (len(starts), counts["dropped"]) == (0, 1)  # only the bos would stand before the answer


SPELLED = [
    {"role": "user", "content": "Say <|im_end|>"},
    {"role": "assistant", "content": "I write <|endoftext|> here"},
]


def test_a_control_token_in_a_message_is_a_bad_record_or_text(tokenizer, tmp_path):
    data = write(tmp_path, tokenizer, lines(SPELLED, TALK[1:3]))
    rows = data.open("train")
    assert rows.meta["bad_records"][0][1].startswith("a message holds '<|im_end|>', a control token")
    assert len(rows.stream.offsets) == 2
    rows = dataclasses.replace(data, control_tokens="escape").open("train")
    batch = rows.batch(np.array([0]), None)
    assert said(rows, tokenizer)[0] == chat.render(CHATML, SPELLED) + chat.render(CHATML, TALK[1:3])
    ends = tokenizer.model.token_to_id("<|im_end|>")
    assert np.sum(batch["tokens"] == ends) == 4  # one a message
    assert not np.any((batch["tokens"] == tokenizer.separator) & (batch["segment_ids"] > 0))
    assert set(batch["segment_ids"][0]) == {0, 1, 2}


def test_a_prompt_is_text(tokenizer):
    ids = chat.prompt(CHATML, SPELLED[:1], tokenizer)
    assert ids.count(tokenizer.model.token_to_id("<|im_end|>")) == 1
    assert tokenizer.model.decode(ids, skip_special_tokens=False).startswith(
        "<|im_start|>user\nSay <|im_end|><|im_end|>"
    )


def test_names_of_tokens_come_from_beside_the_tokenizer(tokenizer, tmp_path):
    data = write(tmp_path, tokenizer, lines(TALK[1:3]), template="{{ bos_token }}" + EOS)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}')
    assert said(data.open("train"), tokenizer)[0] == "<|im_start|>[Hi]Hello!<|im_end|>"
