"""Chat templates as transformers renders them, and the loss on the assistant's turns."""

import json

import numpy as np
import pytest

from bigmodel_jax.data import chat, tokenizers
from bigmodel_jax.data.chat_data import ChatData

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
    whole = tokenizer.encode_chat(chat.render(CHATML, TALK))
    assert ids.tolist() == whole
    said = tokenizer.model.decode(ids[mask > 0].tolist(), skip_special_tokens=False)
    assert said == "Hello!<|im_end|>\nSee you.<|im_end|>\n"


def test_a_template_that_rewrites_its_past_is_refused(tokenizer):
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        chat.encode("{{ messages | length }}{{ messages[-1].content }}", TALK, tokenizer)


def write(tmp_path, tokenizer, lines):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    return ChatData(
        train_path=str(tmp_path / "talks.jsonl"),
        tokenizer_path=str(tmp_path / "tokenizer.json"),
        template_path=str(tmp_path / "chat_template.jinja"),
        cache_dir=str(tmp_path / "cache"),
        seq_len=256,
        max_bad_records=1,
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


def test_a_second_bad_line_is_named(tokenizer, tmp_path):
    data = write(tmp_path, tokenizer, ["{", json.dumps({"messages": TALK[:2]})])
    with pytest.raises(ValueError, match=r"talks.jsonl line 2: the assistant says nothing"):
        data.open("train")
    with pytest.raises(ValueError, match=r"data\.validation_path = ''"):
        data.open("validation")
