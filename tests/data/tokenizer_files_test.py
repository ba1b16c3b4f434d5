"""Tokenizers in the forms in which they are published give the ids of the tool that made them."""

import base64
import io
import json

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from bigmodel_jax.data.tokenizers import tokenizer_files, tokenizers

TEXTS = [
    "The people of the United States, in order to form a more perfect union,",
    "establish justice, insure domestic tranquility, provide for the common defence;",
    "promote the general welfare — and secure the blessings of liberty to ourselves.",
    "In 1787 there were 13 states; by 1959 there were 50.",
]
HELD_OUT = [
    "Liberty and union, now and for ever: 1830!",
    "naïve café 🤗 états",
    "  two  spaces ",
    "line\nbreak\ttab",
    "x",
]


def train_sentencepiece(kind: str, path) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        model_type=kind,
        vocab_size=400 if kind == "bpe" else 340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_gives_its_own_ids(kind, tmp_path):
    """Llama 2 and Mistral use one kind of SentencePiece model, and T5 uses the other. Unknown
    characters fall back to bytes."""
    theirs = train_sentencepiece(kind, tmp_path / "tokenizer.model")
    ours = tokenizer_files.from_folder(tmp_path)
    for text in TEXTS + HELD_OUT:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text
        assert ours.decode(theirs.encode(text)) == text


def test_gpt2s_two_files(tmp_path):
    trained = tokenizers.train_bpe(TEXTS * 10, 400)
    model = json.loads(trained.model.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    ours = tokenizer_files.from_folder(tmp_path)
    for text in TEXTS + HELD_OUT:
        assert ours.encode(text).ids == trained.encode(text), text


def test_bert_vocabulary(tmp_path):
    trained = tokenizers.train_wordpiece(TEXTS * 10, 300)
    vocab = sorted(trained.model.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(piece for piece, _ in vocab) + "\n")
    ours = tokenizer_files.from_folder(tmp_path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == trained.encode(text), text
    ids = ours.encode("The States").tokens
    assert (ids[0], ids[-1]) == ("[CLS]", "[SEP]")
    cased = tmp_path / "tokenizer_config.json"
    cased.write_text(json.dumps({"do_lower_case": False}))
    assert tokenizer_files.from_folder(tmp_path).encode("The", add_special_tokens=False).tokens == ["[UNK]"]


@pytest.mark.parametrize("name", ["t.tiktoken", "tokenizer.model"])
def test_tiktoken_ranks_give_back_their_merges(name, tmp_path):
    """Ranks hold no list of merges. The tokenizer read from them equals the one they were written
    from."""
    trained = tokenizers.train_bpe(TEXTS * 10, 400)
    spelled = {c: b for b, c in enumerate(tokenizers.byte_characters())}
    pieces = {p: i for p, i in trained.model.get_vocab().items() if i != trained.separator}
    order = sorted(pieces, key=pieces.get)
    lines = [base64.b64encode(bytes(spelled[c] for c in p)).decode() + f" {n}" for n, p in enumerate(order)]
    (tmp_path / name).write_text("\n".join(lines))
    ours = tokenizer_files.from_folder(tmp_path)
    # Words as both cut them: letters with the space before them.
    for text in ("the people of the united", "more perfect union", "naïve café"):
        named = [trained.model.id_to_token(i) for i in trained.encode(text)]
        assert ours.encode(text).tokens == named, text
    assert ours.encode("13959").tokens[0][:3].isdigit(), "digits in groups of at most three"
    for text in TEXTS + HELD_OUT:
        assert ours.decode(ours.encode(text).ids) == text


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert tokenizer_files.from_folder(tmp_path) is None


def test_a_model_that_is_none_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model"):
        tokenizer_files.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "plain", "control"),
    [
        ({}, [1, 2, 3, 2, 1, 2, 5, 6, 7, 2, 1], [1, 2, 3, 2, 1, 2, 5, 6, 7, 2, 1]),
        (
            {"added_tokens_decoder": {"3": {"content": "<x>", "lstrip": True, "rstrip": True, "special": True}}},
            [1, 2, 5, 8, 7, 2, 1, 2, 5, 6, 7, 2, 1],
            [1, 3, 1, 2, 5, 6, 7, 2, 1],
        ),
        ({"eos_token": "<s>"}, [1, 2, 3, 2, 1, 2, 5, 6, 7, 2, 1], [1, 2, 3, 2, 1, 2, 4, 2, 1]),
        ({"extra_special_tokens": ["<s>"]}, [1, 2, 3, 2, 1, 2, 5, 6, 7, 2, 1], [1, 2, 3, 2, 1, 2, 4, 2, 1]),
        (
            {"eos_token": "<x>", "added_tokens_decoder": {"3": {"content": "<x>", "rstrip": True, "special": False}}},
            [1, 2, 5, 8, 7, 2, 1, 2, 5, 6, 7, 2, 1],
            [1, 2, 3, 1, 2, 5, 6, 7, 2, 1],
        ),
    ],
)
def test_the_config_decides_how_an_added_token_of_the_json_file_is_read(config, plain, control, tmp_path):
    """The ids are those of transformers 5.23, with and without `split_special_tokens`."""
    vocab = {"<unk>": 0, "a": 1, "Ġ": 2, "<x>": 3, "<s>": 4, "<": 5, "s": 6, ">": 7, "x": 8}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.add_tokens([AddedToken("<x>", normalized=False)])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizer_files.from_folder(tmp_path)
    for as_text, ids in ((True, plain), (False, control)):
        found.encode_special_tokens = as_text
        assert found.encode("a <x> a <s> a").ids == ids
