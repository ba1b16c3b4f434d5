"""SentencePiece models of every kind give the ids of SentencePiece, through a folder, a run's file
and a batch."""

import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from bigmodel_jax.data import (
    MixtureData,
    QuestionAnsweringData,
    Stage,
    TextData,
    TextFiles,
    TokenizerConfig,
    TokenLabelData,
)
from bigmodel_jax.data.corpus.token_statistics import statistics
from bigmodel_jax.data.tokenizers import sentencepiece_model, tokenizer_files, tokenizers
from bigmodel_jax.data.tokenizers.sentencepiece_model import SentencePieceModel
from tokenizer_texts import CORPUS, texts

AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
BYTES = {"byte_fallback": True}
T5 = {"model_type": "unigram", "vocab_size": 300, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
BPE = {"model_type": "bpe", "vocab_size": 500}
UNIGRAM = {"model_type": "unigram", "vocab_size": 400}
TURNS = {"user_defined_symbols": ["<start_of_turn>", "<|im_start|>", "\n\n", "▁▁"]}
KINDS = {
    "llama": BPE | BYTES | AS_IT_IS | {"split_digits": True, "allow_whitespace_only_pieces": True},
    "bpe_without_bytes": BPE | AS_IT_IS | {"vocab_size": 300},
    "bpe_without_prefix": BPE | BYTES | AS_IT_IS | {"add_dummy_prefix": False},
    "gemma": BPE | BYTES | AS_IT_IS | TURNS | {"add_dummy_prefix": False, "allow_whitespace_only_pieces": True},
    "bpe_user_defined": BPE | BYTES | AS_IT_IS | TURNS,
    "bpe_nfkc": BPE | BYTES | {"normalization_rule_name": "nfkc"},
    "bpe_lower": BPE | BYTES | {"normalization_rule_name": "nmt_nfkc_cf"},
    "bpe_suffix": BPE | BYTES | AS_IT_IS | {"treat_whitespace_as_suffix": True},
    "bpe_one_space": BPE | BYTES | {"normalization_rule_name": "identity"},
    "t5": T5,
    "t5_as_it_is": T5 | AS_IT_IS,
    "unigram": UNIGRAM | BYTES | AS_IT_IS,
    "unigram_user_defined": UNIGRAM | BYTES | TURNS,
    "unigram_suffix": UNIGRAM | BYTES | AS_IT_IS | {"treat_whitespace_as_suffix": True},
    "char": {"model_type": "char", "vocab_size": 100} | AS_IT_IS,
    "word": {"model_type": "word", "vocab_size": 60} | AS_IT_IS,
}
CONVERTED = {"llama", "bpe_without_bytes", "bpe_without_prefix"}


@functools.cache
def train(kind: str) -> bytes:
    model = io.BytesIO()
    fixed = {"model_writer": model, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), **fixed, **KINDS[kind])
    return model.getvalue()


def folder(path, kind: str, file: str = "tokenizer.model", **about):
    (path / file).write_bytes(train(kind))
    if about:
        (path / "tokenizer_config.json").write_text(json.dumps(about))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_sentencepieces_ids(kind, tmp_path):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(kind))
    model = tokenizer_files.from_folder(folder(tmp_path, kind))
    assert (not isinstance(model, SentencePieceModel)) == (kind in CONVERTED)
    model.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizers.load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.vocab_size == theirs.vocab_size()
    batch = texts(1000)
    expected = theirs.encode(batch)
    wrong = [text for text, ids in zip(batch, expected, strict=True) if ours.encode(text) != ids]
    assert not wrong, f"{len(wrong)} texts differ, the shortest {min(wrong, key=len)!r}"
    assert [ids.tolist() for ids in ours.encode_batch(batch)] == expected
    assert ours.decode(expected[5]) == theirs.decode(expected[5])


def test_offsets_say_where_in_the_text_a_token_stands(tmp_path):
    model = tokenizer_files.from_folder(folder(tmp_path, "t5", "spiece.model"))
    text = "naïve  café</s>the"
    found = model.encode(text)
    assert "".join(text[a:b] for a, b in found.offsets if b > a) == text
    assert [text[a:b] for (a, b), token in zip(found.offsets, found.tokens, strict=True) if token == "</s>"] == [
        "</s>",
        "",
    ]


@pytest.mark.parametrize("about", [{}, {"tokenizer_class": "T5TokenizerFast", "extra_ids": 100}])
def test_t5_has_a_hundred_ids_more(about, tmp_path):
    """T5 numbers them so: the last sentinel follows the model's pieces, and the first one is the
    last id."""
    model = tokenizer_files.from_folder(folder(tmp_path, "t5", "spiece.model", **about))
    size = sentencepiece.SentencePieceProcessor(model_proto=train("t5")).vocab_size()
    assert model.get_vocab_size() == size + 100
    assert [model.token_to_id(f"<extra_id_{i}>") for i in (0, 1, 99)] == [size + 99, size + 98, size]
    marked = model.encode("<extra_id_0> the people <extra_id_1>", add_special_tokens=False).ids
    assert marked == [size + 99, *model.encode("the people", add_special_tokens=False).ids, size + 98]
    assert model.encode("the people").ids[-1] == 1, "an encoder reads </s> after a text"
    assert model.decode(marked) == "the people"


def test_other_numbers_of_sentinels(tmp_path):
    model = tokenizer_files.from_folder(
        folder(tmp_path, "t5", "spiece.model", tokenizer_class="T5Tokenizer", extra_ids=0)
    )
    assert model.token_to_id("<extra_id_0>") is None


def test_what_is_saved_is_read_again(tmp_path):
    about = {"tokenizer_class": "T5Tokenizer", "additional_special_tokens": ["<extra_id_0>", "<tag>"]}
    model = tokenizer_files.from_folder(folder(tmp_path, "t5", "spiece.model", **about))
    model.save(str(tmp_path / "saved.json"))
    again = sentencepiece_model.load(tmp_path / "saved.json")
    for text in ["a <tag> b", "</s> x <extra_id_5>", ""]:
        assert again.encode(text) == model.encode(text)
    again.enable_truncation(4)
    assert again.encode("the people of the United States").ids == [*model.encode("the people of").ids[:3], 1]
    again.export(tmp_path / "..")
    assert (tmp_path / ".." / "spiece.model").read_bytes() == train("t5")


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ({"tokenizer_class": "XLNetTokenizer"}, "XLNetTokenizer"),
        ({"tokenizer_class": "SiglipTokenizer"}, "SiglipTokenizer"),
        ({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, "add_prefix_space = False"),
        ({"tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs"),
        ({"tokenizer_class": "LlamaTokenizer", "do_lower_case": True}, "do_lower_case"),
        ({"added_tokens_decoder": {"7": {"content": "<new>"}}}, "'<new>' id 7"),
        ({"added_tokens_decoder": ["<new>"]}, "added tokens cannot be read"),
        ({"tokenizer_class": "T5Tokenizer", "extra_ids": -1}, "extra_ids = -1"),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "bpe_nfkc"])
def test_what_is_not_read_is_refused(kind, about, named, tmp_path):
    with pytest.raises(ValueError, match=named) as error:
        tokenizer_files.from_folder(folder(tmp_path, kind, **about))
    assert "\n" not in str(error.value)
    assert "save_pretrained" in str(error.value)


def test_a_class_may_follow_from_the_model_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "xlnet"}')
    with pytest.raises(ValueError, match="XLNetTokenizer"):
        tokenizer_files.from_folder(folder(tmp_path, "t5", "spiece.model"))


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x0a\x03abc"])
def test_a_model_that_is_none_is_named(content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model: not a SentencePiece model") as error:
        tokenizer_files.from_folder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def saved(tmp_path):
    """The tokenizer.json of two models, T5's and Gemma's."""

    def save(kind, file):
        (tmp_path / kind).mkdir()
        tokenizer_files.from_folder(folder(tmp_path / kind, kind, file)).save(str(tmp_path / kind / "tokenizer.json"))
        return str(tmp_path / kind / "tokenizer.json")

    return save("t5", "spiece.model"), save("gemma", "tokenizer.model")


def test_a_folder_with_a_saved_model_is_read(saved):
    """A run's folder that is imported again is such a folder."""
    path = Path(saved[0])
    again = tokenizer_files.from_folder(path.parent)
    path.unlink()  # beside it lies the model's own file
    assert again.encode("the people").ids == tokenizer_files.from_folder(path.parent).encode("the people").ids


def test_texts_of_one_model_mix_and_those_of_two_do_not(saved, tmp_path):
    (tmp_path / "a.txt").write_text("the people of the United States")

    def mixture(*paths):
        source = TextFiles(f"{tmp_path}/a.txt")
        parts = (TextData(source=source, tokenizer=TokenizerConfig(path=path)) for path in paths)
        return MixtureData(parts=tuple(parts), stages=(Stage(0, (1, 1)),), cache_dir=str(tmp_path / "cache"))

    assert len(mixture(saved[0], saved[0]).open("train")) == 2
    with pytest.raises(ValueError, match=r"^data\.parts\.1: its tokenizer is not that of data\.parts\.0"):
        mixture(*saved).open("train")


def test_a_data_card_counts_the_unknown_pieces(saved):
    for path in saved:
        tokenizer = tokenizers.load_tokenizer(path)
        ids = np.array(tokenizer.encode("the people \u4e16\u754c"))
        found = statistics(tokenizer, [ids], [np.array([len(ids)])], 20)
        assert found["unknown"] == (1 if path == saved[0] else 0), "Gemma's has a piece for every byte"


@pytest.mark.parametrize("data", [QuestionAnsweringData, TokenLabelData])
def test_data_of_words_and_pairs_refuses_a_model_that_encodes_none(data, saved):
    with pytest.raises(ValueError, match=r"^data\.tokenizer_path = '\S+' holds a SentencePiece model, [^\n]+$"):
        data(tokenizer_path=saved[0]).open_tokenizer()
