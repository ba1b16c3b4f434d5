import dataclasses
import json
import zlib

import numpy as np
import pytest

from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.data.text.text_classification import (
    LabelledLines,
    TextClassificationData,
    char_ngrams,
    read,
    split_words,
    vocabulary,
    word_ngrams,
)

LINES = [f"Word{i} is {'good' if i % 2 else 'bad'}, common.\t{'pos' if i % 2 else 'neg'}" for i in range(40)]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(LINES) + "\n")
    (tmp_path / "test.txt").write_text("good novel\tpos\nbad\tneg\n\u00e9t\u00e9 a\tb\tneg\n")
    return TextClassificationData(
        source=LabelledLines(train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt")), seq_len=6
    )


def reviews():
    films = {"text": [f"film {i}" for i in range(6)], "label": [0, 1, 2] * 2}
    return {"train": films, "validation": films, "test": {"text": ["film 9"], "label": [2]}}


@dataclasses.dataclass(frozen=True)
class Named(Arrays):
    def labels(self):
        return ("worse", "middling", "fine")


def test_any_source_of_texts_and_labels_feeds_it(tmp_path):
    data = TextClassificationData(source=Arrays(reviews), seq_len=3, cache_dir=str(tmp_path))
    assert [len(data.open(split)) for split in ("train", "validation")] == [6, 6], "nothing is held out of its training"
    assert vocabulary(data)[1] == ("0", "1", "2")
    named = dataclasses.replace(data, source=Named(reviews), evaluate_on="test")
    assert vocabulary(named)[1] == ("worse", "middling", "fine"), "in the order of the source's numbers"
    assert named.open("validation").labels.tolist() == [2]
    assert sorted(named.reads()) == ["data.source.test", "data.source.train", "data.source.validation"]
    with pytest.raises(ValueError, match="no field 'stars'; its fields: text, label"):
        dataclasses.replace(data, label_field="stars").open("train")


def test_texts_that_lose_their_end_are_counted(config, caplog):
    dataclasses.replace(config, evaluate_on="test", seq_len=2).open("validation")
    assert "validation split: 1 of 3 texts are longer than data.seq_len = 2, and lose their end" in caplog.text


def test_words():
    assert split_words("Don't stop: it's 1990s' ÉTÉ!") == ["don't", "stop", ":", "it's", "1990s", "'", "été", "!"]


def test_rows(config):
    words, labels = vocabulary(config)
    assert labels == ("neg", "pos")
    assert words[:2] == ("<padding>", "<unknown>")
    assert words[2:6] == (",", ".", "common", "is"), "by count, then by the alphabet"
    train, validation = config.open("train"), config.open("validation")
    assert (len(train), len(validation)) == (36, 4)
    batch = train.batch(np.array([0, 1]), None)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "tokens": ((2, 6), "int32"),
        "segment_ids": ((2, 6), "int32"),
        "label": ((2,), "int32"),
        "weights": ((2,), "float32"),
    }
    decoded = [words[i] for i in batch["tokens"][0]]
    assert decoded[1:] == ["is", "good" if batch["label"][0] else "bad", ",", "common", "."]
    assert config.requirements() == {"vocab_size": len(words), "num_classes": 2}


def test_the_vocabulary_knows_training_rows_alone(config):
    words, _ = vocabulary(config)
    assert len([w for w in words if w.startswith("word")]) == 36
    unknown = config.open("validation").tokens == 1
    assert unknown.sum(axis=1).tolist() == [1] * 4
    assert not (config.open("train").tokens == 1).any()
    assert len(vocabulary(dataclasses.replace(config, vocab_size=5))[0]) == 5


def test_the_test_file(config):
    rows = dataclasses.replace(config, evaluate_on="test").open("validation")
    assert rows.labels.tolist() == [1, 0, 0], "the label stands after the last tab"
    assert (rows.tokens != 0).sum(axis=1).tolist() == [2, 1, 3]
    assert len(config.open("train")) == 36


def test_the_same_text_is_never_on_both_sides(config, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(LINES * 3))
    both = [{tuple(row) for row in config.open(s).tokens[:, 1:].tolist()} for s in ("train", "validation")]
    assert len(config.open("train")) + len(config.open("validation")) == 120
    assert not (config.open("validation").tokens[:, 0] != 1).any(), "every first word there is unknown"
    assert both


def test_runs_of_characters(config):
    """Each word is written as <word>. Its runs of characters keep their order, and each run has its
    own number. Words outside the vocabulary have runs as well."""
    cfg = dataclasses.replace(config, max_chars=4, seq_len=2)
    marked = ["<ab", "abc", "bc>", "<abc", "abc>"]
    numbers = [1 + zlib.crc32(run.encode()) % (cfg.ngram_buckets - 1) for run in marked]
    assert word_ngrams("abc", cfg) == numbers
    found = char_ngrams([("ABC a never", "x"), ("é", "x")], cfg)
    first = [*numbers, *word_ngrams("a", cfg)]
    np.testing.assert_array_equal(found, [first, [*word_ngrams("é", cfg), *[0] * (len(first) - 1)]])
    assert cfg.requirements()["ngram_buckets"] == cfg.ngram_buckets
    batch = cfg.open("train").batch(np.arange(3), None)
    assert batch["ngrams"].dtype == np.int32
    assert (batch["ngrams"] > 0).any(axis=1).all()
    assert "ngrams" not in config.open("train").batch(np.arange(3), None)


def test_artifacts_and_baseline(config, tmp_path):
    config.save_artifacts(tmp_path)
    saved = json.loads((tmp_path / "vocabulary.json").read_text())
    assert (tuple(saved["words"]), tuple(saved["labels"])) == vocabulary(config)
    assert 0 <= config.baselines()["majority_accuracy"] <= 1


def test_bad_lines_are_counted_and_named(config, tmp_path, caplog):
    path = tmp_path / "train.txt"
    path.write_bytes("\n".join(LINES).encode() + b"\nno tab\n\xff\tpos\n \tpos\nno label\t\n")
    with pytest.raises(ValueError, match=r"train\.txt line 41: no tab between text and label"):
        config.open("train")
    rows = dataclasses.replace(config, max_bad_records=4).open("train")
    reasons = [reason for _, reason in rows.skipped]
    assert reasons[0] == "no tab between text and label"
    assert reasons[1].startswith("not UTF-8")
    assert reasons[2:] == ["empty text", "empty label"]
    assert "train.txt line 44: empty label" in caplog.text


def test_a_label_that_training_lacks(config, tmp_path):
    (tmp_path / "test.txt").write_text("fine\tneutral\n")
    with pytest.raises(ValueError, match=r"test\.txt line 1: label 'neutral' is not among those of training: neg, pos"):
        dataclasses.replace(config, evaluate_on="test").open("validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": LabelledLines("missing.txt")}, r"data\.source\.train: 'missing\.txt' matches no file"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction = 0\.0"),
        ({"vocab_size": 2}, r"data\.vocab_size = 2; it must be 3 or more"),
        ({"seq_len": 0}, r"data\.seq_len = 0; it must be 1 or more"),
        ({"max_chars": 2}, r"data\.min_chars = 3; it must be 1 to data\.max_chars = 2"),
    ],
)
def test_a_mistake_is_one_line(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes).open("train")


def test_one_label_is_not_enough(config, tmp_path):
    (tmp_path / "train.txt").write_text("a\tx\nb\tx\n")
    with pytest.raises(ValueError, match=r"has one label only, 'x'; at least two are needed"):
        config.open("train")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty\.txt.* has no usable records"):
        read(dataclasses.replace(config, source=LabelledLines(str(tmp_path / "empty.txt"))), "train")
