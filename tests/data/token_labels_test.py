"""One label a word: where it is asked for, how labels are numbered, and records that are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from bigmodel_jax.data import ConllFiles, TableFiles, TokenLabelData, fields, inspect
from bigmodel_jax.data.tokenizers import tokenizer_files
from bigmodel_jax.objectives import MaskedLanguageModel
from tiny_encoder import learns

BERT = Path(__file__).parent / "tokenizer_forms" / "bert"
ROWS = [
    {"words": ["Ada", "lives", "in", "Paris"], "labels": ["B-PER", "O", "O", "B-LOC"]},
    {"words": ["Rex", "barks"], "labels": ["B-PER", "O"]},
]


@pytest.fixture
def make(tmp_path):
    tokenizer_files.from_folder(BERT).save(str(tmp_path / "tokenizer.json"))

    def data(rows=ROWS, validation=None, **more):
        for split, some in (("train", rows), ("validation", rows if validation is None else validation)):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
        source = TableFiles(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl"))
        fields = {"source": source, "seq_len": 24, "tokenizer_path": str(tmp_path / "tokenizer.json")}
        return TokenLabelData(**(fields | {"cache_dir": str(tmp_path / "cache")} | more))

    return data


def test_a_label_is_asked_for_at_the_first_token_of_its_word(make):
    data = make()
    batch, model = data.open("train").batch(np.arange(2), None), data.open_tokenizer().model
    assert data.labels() == ("B-LOC", "B-PER", "O")
    for row, record in enumerate(ROWS):
        asked = np.flatnonzero(batch["weights"][row])
        assert [data.labels()[n] for n in batch["targets"][row, asked]] == record["labels"]
        begins = [model.id_to_token(i) for i in batch["tokens"][row, asked]]
        assert all(word.lower().startswith(piece) for word, piece in zip(record["words"], begins, strict=True))
        assert model.id_to_token(batch["tokens"][row, 0]) == "[CLS]"
    fields.check(data.row(), batch)
    assert batch.keys() == data.row().keys()
    assert data.requirements()["num_classes"] == 3


def test_conll_files_are_the_same_sentences(make, tmp_path):
    text = "-DOCSTART- -X- O O\n"
    for record in ROWS:
        text += "\n" + "".join(f"{word} X {label}\n" for word, label in zip(*record.values(), strict=True))
    (tmp_path / "a.conll").write_text(text)
    files = ConllFiles(train=str(tmp_path / "a.conll"), validation=str(tmp_path / "a.conll"))
    np.testing.assert_array_equal(make(source=files).open("train").tokens, make().open("train").tokens)


def test_a_long_sentence_is_cut_and_counted(make):
    long = {"words": ["Ada"] * 40, "labels": ["O"] * 40}
    counts = {"sentences": 3, "too long, cut at the end": 1, "skipped records": 0}
    assert inspect.describe(make([*ROWS, long]))["train"] == counts


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"words": ["a"], "labels": ["O", "O"]}, "1 words, but 2 labels"),
        ({"word": ["a"], "labels": ["O"]}, r"no field 'words' \(perhaps you meant 'word'\)"),
        ({"words": "a b", "labels": ["O"]}, "field 'words' is not a list of texts"),
        ({"words": ["a"], "labels": [3]}, "field 'labels' is not a list of texts"),
    ],
)
def test_a_record_that_is_wrong_is_named_or_skipped(make, record, says):
    with pytest.raises(ValueError, match=f"line 1: {says}"):
        make([record, *ROWS]).open("train")
    assert len(make([record, *ROWS], max_bad_records=1).open("train")) == 2


def test_a_label_that_training_does_not_have_is_a_bad_record(make):
    other = [{"words": ["Rex"], "labels": ["B-PRE"]}, *ROWS]
    with pytest.raises(ValueError, match=r"label 'B-PRE' is not among those of training \(perhaps you meant 'B-PER'\)"):
        make(validation=other).open("validation")


@pytest.mark.slow
def test_an_encoder_learns_it_and_one_with_another_head_is_refused(make, tmp_path):
    scalars = learns(make(), MaskedLanguageModel(), "token_classification", tmp_path / "run", steps=30, num_classes=3)
    assert scalars["eval/accuracy"] > 0.9
