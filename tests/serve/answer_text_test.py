"""Tokens to text piece by piece, stop strings, and the parts of an assistant's message."""

import random

import pytest

from bigmodel_jax.data.tokenizers.tokenizers import make_bytes, train_bpe, train_unigram
from bigmodel_jax.serve.parts import Parts, called
from bigmodel_jax.serve.text import Pieces, Spelling, Stops

TEXT = "Größe 寿司 🍣 naïve\n  two spaces, 123 👩‍👩‍👧 end"


@pytest.mark.parametrize(
    "tokenizer",
    [make_bytes(), train_bpe([TEXT * 3], 300), train_unigram([TEXT * 3], 60)],
    ids=["bytes", "bpe", "unigram"],
)
def test_pieces_together_are_the_whole_text_and_none_is_torn(tokenizer):
    pieces, ids = Pieces(tokenizer), tokenizer.encode(TEXT)
    found = [pieces.add(token) for token in ids]
    assert not any("\ufffd" in piece for piece in found)
    assert "".join(found) + pieces.rest() == tokenizer.decode(ids)
    assert sum(map(bool, found)) > 5


def test_bytes_that_are_no_text_are_given_out_at_the_end():
    tokenizer = make_bytes()
    for seed in range(20):
        ids = random.Random(seed).choices(range(257), k=60)
        pieces = Pieces(tokenizer)
        assert "".join(map(pieces.add, ids)) + pieces.rest() == tokenizer.decode(ids)
    endless = Pieces(tokenizer)
    assert any(endless.add(0xFF + 1) for _ in range(300)), "not everything is held back until the end"


def test_stop_strings_in_any_pieces():
    for seed in range(50):
        text, draw = "one two STOP three STAY", random.Random(seed)
        stops, out = Stops(["STOP", "never"]), ""
        while text and not stops.found:
            n = draw.randint(1, 4)
            out, text = out + stops.add(text[:n]), text[n:]
        assert out == "one two "
        assert stops.found == "STOP"
    stops = Stops(["abc"])
    assert stops.add("xab") == "x"
    assert stops.add("ab") == "ab"
    assert stops.rest() == "ab"


def test_the_parts_of_a_message_in_any_pieces():
    text = '<think>hm <b></think>Yes <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call> <thi'
    for size in (1, 2, 3, 7, 200):
        parts, found = Parts(("reasoning", "call")), []
        for start in range(0, len(text), size):
            found += parts.add(text[start : start + size])
        found += parts.add("", last=True)
        joined = {kind: "".join(part for k, part in found if k == kind) for kind in ("reasoning", "content", "call")}
        assert joined["reasoning"] == "hm <b>"
        assert joined["content"] == "Yes  <thi"
        assert [part for kind, part in found if kind == "call"] == [joined["call"]], "a call comes in one piece"
        assert called(joined["call"])["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert Parts(()).add("<think>") == [("content", "<think>")]
    assert Parts(("reasoning",), "reasoning").add("so</think>\nYes") == [("reasoning", "so"), ("content", "Yes")]


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"name": 3}', "[" * 10_000, '{"name": "f"'])
def test_what_is_no_call(text):
    assert called(text) is None


def test_a_token_that_is_no_character_is_spelled_by_its_bytes():
    spelling = Spelling(make_bytes())
    assert spelling.text(0xF0 + 1) == "bytes:\\xf0"
    assert spelling.bytes(0xF0 + 1) == b"\xf0"
    assert (spelling.text(ord("a") + 1), spelling.bytes(ord("a") + 1)) == ("a", b"a")
