import numpy as np
import pytest

from bigmodel_jax.data.tokenizers import tokenizers

TEXTS = ["the cat sat on the mat, the cat sat.", "naïve café — 日本語 🤗\r\n\ttabs", " leading and  double  blanks "]


@pytest.fixture(params=["bpe", "bytes"])
def tokenizer(request):
    return tokenizers.train_bpe(TEXTS * 10, 300) if request.param == "bpe" else tokenizers.make_bytes()


@pytest.mark.parametrize("text", [*TEXTS, "unseen: Ωß\x00\x7f", "it spells <|endoftext|> out"])
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.separator not in ids
    assert max(ids) < tokenizer.vocab_size


@pytest.mark.parametrize("text", [*TEXTS, "unseen: Ωß", "<|endoftext|>"])
def test_token_bytes_add_up_to_the_text(tokenizer, text):
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.token_bytes()[tokenizer.separator] == 0


def test_batch_equals_one_by_one(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.json")
    loaded = tokenizers.load_tokenizer(tmp_path / "t.json")
    assert [loaded.encode(t) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]
    assert (loaded.vocab_size, loaded.separator) == (tokenizer.vocab_size, tokenizer.separator)
    assert loaded.separator not in loaded.encode("<|endoftext|>")


def test_bytes_are_the_bytes():
    tokenizer = tokenizers.make_bytes()
    assert tokenizer.vocab_size == 257
    text = "a日\x00\x7f\xa0ß"
    assert tokenizer.encode(text) == [b + 1 for b in text.encode()]


def test_bpe_learns_and_is_reproducible():
    first, second = (tokenizers.train_bpe(TEXTS * 10, 300) for _ in range(2))
    assert first.vocab_size == 300
    assert len(first.encode(TEXTS[0])) < len(TEXTS[0])
    assert first.model.to_str() == second.model.to_str()


def test_a_torn_character_does_not_raise():
    tokenizer = tokenizers.make_bytes()
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_bad_tokenizers_are_named(tmp_path):
    from tokenizers import Tokenizer, models

    (tmp_path / "broken.json").write_text("{")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "words.json"))
    for name, reason in (
        ("missing.json", "no such file"),
        ("broken.json", "not a tokenizer"),
        ("words.json", "no document separator"),
    ):
        with pytest.raises(ValueError, match=rf"data\.tokenizer\.path.*{reason}") as error:
            tokenizers.load_tokenizer(tmp_path / name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r"data\.tokenizer\.vocab_size: 100"):
        tokenizers.TokenizerConfig(vocab_size=100)


@pytest.mark.parametrize(("kind", "piece", "lossless"), [("wordpiece", "##", False), ("unigram", "▁", True)])
def test_other_kinds_are_trained_and_their_bytes_counted_where_nothing_is_lost(kind, piece, lossless, tmp_path):
    text = "the people of the united states and their representatives"
    trained = tokenizers.TRAINERS[kind]([text] * 50, 120)
    trained.save(tmp_path / "tokenizer.json")
    again = tokenizers.load_tokenizer(tmp_path / "tokenizer.json")
    ids = again.encode(text)
    assert ids == trained.encode(text)
    assert any(piece in trained.model.id_to_token(i) for i in range(trained.vocab_size))
    assert again.decode(ids) == text
    # SentencePiece puts a space in front.
    assert again.token_bytes()[ids].sum() == (len(text) + 1 if lossless else 0)
