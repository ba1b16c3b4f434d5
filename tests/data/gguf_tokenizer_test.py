"""The tokenizer keys of a GGUF file: each kind cuts words as its models do, and gives the ids of
the tool that made it."""

import random
from pathlib import Path

import pytest
import sentencepiece

from bigmodel_jax.data.tokenizers import tokenizers
from bigmodel_jax.data.tokenizers.gguf_tokenizer import PRE
from bigmodel_jax.data.tokenizers.tokenizer_files import from_gguf_metadata
from sentencepiece_model_test import train
from tokenizer_texts import CORPUS, texts

FILE = Path("model.gguf")
TEXT = "DON'T don't 12345 a_b $x\r\n\n  two"
# By hand, from the patterns in llama.cpp's llama-vocab.cpp and in the models' own tokenizer.json.
WORDS = {
    "gpt-2": ["DON", "'", "T", " don", "'t", " 12345", " a", "_", "b", " $", "x", "\r\n\n ", " two"],
    "smollm": [
        "DON",
        "'",
        "T",
        " don",
        "'t",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        " a",
        "_",
        "b",
        " $",
        "x",
        "\r\n\n ",
        " two",
    ],
    "default": ["DON", "'", "T", " don", "'", "t", " ", "123", "45", " a", "_", "b", " ", "$", "x", "\r\n\n ", " two"],
    "llama-bpe": ["DON", "'T", " don", "'t", " ", "123", "45", " a", "_b", " $", "x", "\r\n\n", " ", " two"],
    "qwen2": ["DON", "'T", " don", "'t", " ", "1", "2", "3", "4", "5", " a", "_b", " $", "x", "\r\n\n", " ", " two"],
    "tekken": ["DON", "'T", " don", "'t", " ", "1", "2", "3", "4", "5", " a", "_b", " $", "x", "\r\n\n", " ", " two"],
}
SAME = {
    "phi-2": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "dbrx": "llama-bpe",
    "smaug-bpe": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}


def byte_level(pre: str | None, *more: tuple[str, int], merges: tuple[str, ...] = ()) -> dict:
    tokens = [*tokenizers.byte_characters(), "<|endoftext|>", *(token for token, _ in more)]
    types = [1] * 256 + [3, *(kind for _, kind in more)]
    metadata = {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": list(merges)}
    metadata |= {} if pre is None else {"pre": pre}
    return {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}


def words(metadata: dict) -> list[str]:
    model = from_gguf_metadata(metadata, FILE)
    spelled = {c: b for b, c in enumerate(tokenizers.byte_characters())}
    cut = model.pre_tokenizer.pre_tokenize_str(TEXT)
    return [bytes(spelled[c] for c in word).decode() for word, _ in cut]


def test_each_kind_cuts_words_in_its_own_way():
    assert {name: words(byte_level(name)) for name in WORDS} == WORDS
    assert {name: words(byte_level(name)) for name in SAME} == {name: WORDS[same] for name, same in SAME.items()}
    assert {*WORDS, *SAME} == {*PRE}
    assert words(byte_level(None)) == WORDS["default"], "llama.cpp's, where a file names none"


def test_words_of_mixed_case():
    """Only Mistral's tekken cuts before a capital."""
    cut = {name: len(words(byte_level(name) | {}) or ()) for name in ("tekken", "qwen2")}
    assert cut["tekken"] == cut["qwen2"]
    model = from_gguf_metadata(byte_level("tekken"), FILE)
    assert [w for w, _ in model.pre_tokenizer.pre_tokenize_str("camelCase")] == ["camel", "Case"]


@pytest.mark.parametrize(
    ("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("smaug-bpe", False), ("qwen2", False)]
)
def test_a_word_that_is_a_token_needs_no_merges_where_the_model_says_so(pre, whole):
    model = from_gguf_metadata(byte_level(pre, ("hello", 1)), FILE)
    assert model.encode("hello").tokens == (["hello"] if whole else list("hello"))


def test_qwen_composes_characters_first():
    model = from_gguf_metadata(byte_level("qwen2"), FILE)
    assert model.encode("e\u0301").ids == model.encode("é").ids == list("é".encode())
    plain = from_gguf_metadata(byte_level("llama-bpe"), FILE)
    assert plain.encode("e\u0301").ids == list("e\u0301".encode())


def test_users_tokens_are_found_in_a_text_and_control_tokens_are_not():
    model = tokenizers.Tokenizer(from_gguf_metadata(byte_level("qwen2", ("<tool>", 4), ("<|im_end|>", 3)), FILE))
    assert model.encode("<tool>") == [257]
    assert model.encode("<|im_end|>") == list(b"<|im_end|>")
    assert model.encode_rendered("<|im_end|>")[0] == [258]


def sentencepiece_metadata(kind: str, **more) -> tuple[dict, sentencepiece.SentencePieceProcessor]:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(kind))
    size = theirs.vocab_size()
    users = ("<start_of_turn>", "<|im_start|>", "\n\n", "▁▁") if "user" in kind or kind == "gemma" else ()
    types = [
        *(
            2
            if theirs.is_unknown(i)
            else 3
            if theirs.is_control(i)
            else 6
            if theirs.is_byte(i)
            else 4
            if theirs.id_to_piece(i) in users
            else 1
            for i in range(size)
        )
    ]
    metadata = {
        "model": "llama",
        "tokens": [theirs.id_to_piece(i) for i in range(size)],
        "scores": [theirs.get_score(i) for i in range(size)],
        "token_type": types,
        **more,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}, theirs


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("bpe_without_prefix", {"add_space_prefix": False}),
        ("bpe_user_defined", {}),
        ("gemma", {"add_space_prefix": False}),
        ("bpe_one_space", {"remove_extra_whitespaces": True}),
    ],
)
def test_sentencepiece_inside_gives_its_ids(kind, more):
    metadata, theirs = sentencepiece_metadata(kind, **more)
    ours = tokenizers.Tokenizer(from_gguf_metadata(metadata, FILE))
    wrong = [text for text in texts(1000) if ours.encode(text) != theirs.encode(text)]
    assert not wrong, f"{len(wrong)} texts differ, the shortest {min(wrong, key=len)!r}"


def test_what_cannot_be_read_is_said_in_one_line():
    """A thousand files have one key changed each. Each is refused in one line, or gives a tokenizer
    that encodes."""
    rng = random.Random(0)
    sources = [byte_level("qwen2", ("ab", 1), merges=("a b",)), sentencepiece_metadata("llama")[0]]
    values = [None, 0, -1, 7, 1.5, "", "x", "a b c", [], [1], ["a"], [["a"]], {}, True, "nowhere", b"ab", 1 << 70]
    refused = []
    for _ in range(1000):
        metadata = dict(rng.choice(sources))
        key = rng.choice(list(metadata))
        change = rng.choice(["drop", "value", "item", "shorter"])
        if change == "drop":
            del metadata[key]
        elif change == "value" or not isinstance(metadata[key], list) or not metadata[key]:
            metadata[key] = rng.choice(values)
        elif change == "shorter":
            metadata[key] = metadata[key][:-1]
        else:
            changed = list(metadata[key])
            changed[rng.randrange(len(changed))] = rng.choice(values)
            metadata[key] = changed
        try:
            from_gguf_metadata(metadata, FILE).encode(CORPUS[0])
        except ValueError as error:
            refused.append(str(error))
    assert 500 < len(refused) < 1000
    assert not [text for text in refused if "\n" in text or not text.startswith("model.gguf: ")]


def test_messages_name_the_key():
    metadata = byte_level("nowhere")
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre = 'nowhere' is not supported; supported: default"):
        from_gguf_metadata(metadata, FILE)
    with pytest.raises(ValueError, match=r"its merges do not fit its vocabulary \(Token `zz` out of vocabulary\)"):
        from_gguf_metadata(byte_level("qwen2", merges=("a zz",)), FILE)
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.merges is absent"):
        from_gguf_metadata({k: v for k, v in byte_level("qwen2").items() if not k.endswith("merges")}, FILE)
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.token_type has 256 values for 257 tokens"):
        from_gguf_metadata(byte_level("qwen2") | {"tokenizer.ggml.token_type": [1] * 256}, FILE)
