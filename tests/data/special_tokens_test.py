"""What begins and ends a text, as the files beside a published tokenizer say it."""

import json

import pytest
from tokenizers import Tokenizer as Model
from tokenizers import models, processors

from bigmodel_jax.data.tokenizers import special_tokens
from bigmodel_jax.data.tokenizers.special_tokens import SpecialTokens
from bigmodel_jax.data.tokenizers.tokenizers import Tokenizer, load_tokenizer

WORDS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<turn>", "a"]


def made(words=WORDS, *, template: str = "") -> Model:
    model = Model(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    model.add_special_tokens([word for word in words if word != "a"])
    if template:
        model.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return model


@pytest.mark.parametrize(
    ("names", "template", "start"),
    [
        ({}, "", "<s>"),  # nothing is said: by its name
        ({"bos_token": "<turn>"}, "", "<turn>"),
        ({"bos_token": None}, "", "</s>"),  # Qwen
        ({"bos_token": "<|im_start|>"}, "", "</s>"),  # SmolLM2
        ({"bos_token": "<s>", "add_bos_token": False}, "<s> $A", "</s>"),
        ({"bos_token": "<s>", "add_bos_token": True}, "$A </s>", "<s>"),
        ({"bos_token": "<s>"}, "<s> $A", "<s>"),
        ({"bos_token": "<s>"}, "$A </s>", "</s>"),
        ({"bos_token": {"content": "<turn>", "__type": "AddedToken"}}, "", "<turn>"),
    ],
)
def test_a_text_begins_with_what_the_tokenizer_puts_in_front(names, template, start):
    tokenizer = Tokenizer(made(template=template), SpecialTokens(names))
    assert tokenizer.piece(tokenizer.start) == start


@pytest.mark.parametrize(
    ("special", "stops"),
    [
        (SpecialTokens(), (1, 3)),  # the separator, and the end of a turn by its name
        (SpecialTokens({"eos_token": "<turn>"}), (4, 1, 3)),
        (SpecialTokens(model={"eos_token_id": 2}), (2, 1, 3)),
        (SpecialTokens(generation={"eos_token_id": [5, 4]}, model={"eos_token_id": 2}), (5, 4, 1, 3)),
        (SpecialTokens(generation={"eos_token_id": None}, model={"eos_token_id": [2]}), (2, 1, 3)),
    ],
)
def test_stops_are_every_end_that_is_named(special, stops):
    assert Tokenizer(made(), special).stops == stops


@pytest.mark.parametrize("ids", ["2", [[2]], True, 2.0, {"a": 1}])
def test_an_id_that_is_no_number_is_one_line(ids):
    with pytest.raises(ValueError, match="eos_token_id = .*; it must be a token's number"):
        Tokenizer(made(), SpecialTokens(model={"eos_token_id": ids}))


def test_an_end_that_has_no_usual_name_comes_from_beside_the_tokenizer(tmp_path):
    made(["<start>", "<finish>", "a"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no document separator: .*no eos_token is named"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<start>", "eos_token": "<finish>"}))
    found = load_tokenizer(tmp_path / "tokenizer.json")
    assert (found.start, found.separator, found.stops) == (0, 1, (1,))
    assert found.names() == {"bos_token": "<start>", "eos_token": "<finish>"}


def test_the_names_of_deepseek_are_known():
    found = Tokenizer(made(["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "a"]))
    assert (found.start, found.separator) == (0, 1)


def test_what_is_written_is_read_again_and_the_template_left_to_its_own_file(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "x", "chat_template": "y", "tokenizer_class": "Z"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2], "top_p": 0.9}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 1, "pad_token_id": null, "hidden_size": 8}')
    found = special_tokens.read(tmp_path)
    expected = SpecialTokens(
        {"eos_token": "x"}, {"eos_token_id": [1, 2], "top_p": 0.9}, {"eos_token_id": 1, "pad_token_id": None}
    )
    assert found == expected
    (tmp_path / "run").mkdir()
    found.write(tmp_path / "run")
    assert special_tokens.read(tmp_path / "run") == expected
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json: it must hold a JSON object, and holds a list"):
        special_tokens.read(tmp_path)


def test_a_gguf_file_says_the_same_by_number():
    metadata = {
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.ggml.padding_token_id": 99,  # beyond the vocabulary
        "tokenizer.ggml.add_bos_token": False,
    }
    found = special_tokens.from_gguf(metadata)
    assert found.names == {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    assert found.model == {"bos_token_id": 0, "eos_token_id": [1, 4]}
    assert Tokenizer(made(), found).stops == (1, 4, 3)
    assert not special_tokens.from_gguf({})
