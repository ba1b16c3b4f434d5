"""Conversations become the tokens that transformers' apply_chat_template makes of them (see
make_chat_reference.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Model

from bigmodel_jax.data.text import chat
from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer

REFERENCE = json.loads((Path(__file__).parent / "fixtures" / "chat.json").read_text())
CASES = {case["name"]: case for case in REFERENCE["cases"]}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def tokenizer_of(case) -> Tokenizer:
    model = Model.from_str(json.dumps(REFERENCE["tokenizers"][case["tokenizer"]]))
    return Tokenizer(model, SpecialTokens(case["names"]))


def encode(case) -> chat.Sample:
    return chat.encode(case["template"], case["messages"], tokenizer_of(case), tools=case.get("tools"))


def test_ids_equal_transformers(case):
    assert encode(case).ids.tolist() == case["ids"]


def test_prompts_equal_transformers(case):
    assert chat.prompt(case["template"], case["messages"][:1], tokenizer_of(case)) == case["prompt"]


def test_marked_tokens_equal_transformers(case):
    if "mask" in case:
        assert encode(case).mask.tolist() == case["mask"]


def test_control_tokens_in_a_message_are_text_as_in_transformers_or_an_error(case):
    own = tokenizer_of(case)
    found = chat.encode(case["template"], case["spelled"], own, escape=True)
    assert found.ids.tolist() == case["spelled_ids"]
    with pytest.raises(ValueError, match="a message holds .*, a control token of this tokenizer"):
        chat.encode(case["template"], case["spelled"], own)


# What the assistant's tokens of each conversation spell, by hand.
SAID = {
    "chatml": "I am fine<|im_end|>\nFour: é 日本\n\n 4.<|im_end|>\n",
    "chatml with a system message": "I am fine<|im_end|>\nFour: é 日本\n\n 4.<|im_end|>\n",
    "chatml marked": "I am fine<|im_end|>\nFour: é 日本\n\n 4.<|im_end|>\n",
    "mistral, prepend": "▁I▁am▁fine</s>▁Four:▁é▁日本\n\n▁4.</s>",
    "mistral marked": "▁I▁am▁fine</s>▁Four:▁é▁日本\n\n▁4.</s>",
    "llama 2, prepend": "▁I▁am▁fine▁</s>▁Four:▁é▁日本\n\n▁4.▁</s>",
    "zephyr": "I▁am▁fine</s>▁\nFour:▁é▁日本\n\n▁4.</s>▁\n",
    "gemma": "I▁am▁fine<end_of_turn>\nFour:▁é▁日本\n\n▁4.<end_of_turn>\n",
    "llama 3": "I am fine<|eot_id|>Four: é 日本\n\n 4.<|eot_id|>",
    "tools": 'Hm<tool_call>\n{"name": "add", "arguments": {"a": 2, "é": [2, null]}}\n</tool_call><|im_end|>\nFour.<|im_end|>\n',
    "reasoning": "<think>\nhm\n</think>\n\nFine<|im_end|>\n",
    "glm": "\nI am fine<|user|>\nFour: é 日本\n\n 4.",
}


def spell(own: Tokenizer, ids) -> str:
    """The tokens' own text, control tokens and the marks of spaces included."""
    if "ByteLevel" in str(own.model.decoder):
        return own.model.decode(ids, skip_special_tokens=False)
    pieces = "".join(own.model.id_to_token(i) for i in ids)
    data = pieces.encode()
    for byte in range(256):
        data = data.replace(f"<0x{byte:02X}>".encode(), bytes([byte]))
    return data.decode()


@pytest.mark.parametrize("name", SAID)
def test_the_assistants_tokens_are_its_words_and_what_ends_them(name):
    own = tokenizer_of(CASES[name])
    ids, mask = encode(CASES[name])
    assert spell(own, ids[mask > 0].tolist()) == SAID[name]


def test_a_turn_that_is_written_otherwise_later_becomes_a_sample_of_its_own():
    case, own = CASES["qwen 3"], tokenizer_of(CASES["qwen 3"])
    first, second = chat.samples(case["template"], case["messages"], own)
    assert second.ids.tolist() == case["ids"]
    np.testing.assert_array_equal(first.ids, chat.encode(case["template"], case["messages"][:2], own).ids)
    assert [spell(own, x.ids[x.mask > 0].tolist()) for x in (first, second)] == [
        "<think>\nhm\n</think>\n\nFine<|im_end|>\n",
        "Four: é 日本\n\n 4.<|im_end|>\n",
    ]


def test_one_sample_where_no_turn_is_rewritten(case):
    if case["name"] not in ("qwen 3", "phi 3"):
        assert len(chat.samples(case["template"], case["messages"], tokenizer_of(case))) == 1
