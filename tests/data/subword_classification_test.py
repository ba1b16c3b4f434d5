"""Texts with labels, in the tokens of a pretrained encoder."""

import numpy as np
import pytest

from bigmodel_jax.data.text.subword_classification import SubwordClassificationData
from bigmodel_jax.data.text.text_classification import LabelledLines
from bigmodel_jax.data.tokenizers import tokenizer_files, tokenizers

LINES = ["a fine film indeed\tgood", "a dull film\tbad", "fine and not dull\tgood", "indeed a dull and dull film\tbad"]


@pytest.fixture
def data(tmp_path):
    trained = tokenizers.train_wordpiece([line.split("\t")[0] for line in LINES] * 10, 60)
    vocab = sorted(trained.model.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(piece for piece, _ in vocab) + "\n")
    tokenizer_files.from_folder(tmp_path).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "train.txt").write_text("\n".join(LINES * 5) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(LINES) + "\n")
    return SubwordClassificationData(
        source=LabelledLines(train=str(tmp_path / "train.txt"), test=str(tmp_path / "test.txt")),
        evaluate_on="test",
        tokenizer_path=str(tmp_path / "tokenizer.json"),
        seq_len=6,
    )


def test_rows_are_what_an_encoder_reads(data, caplog):
    rows, model = data.open("validation"), data.open_tokenizer().model
    pieces = [len(data.open_tokenizer().encode_whole(line.split("\t")[0], 99)) for line in LINES]
    assert 6 in pieces, "one text fits exactly"
    long = sum(num > 6 for num in pieces)
    assert f"validation split: {long} of 4 texts are longer than data.seq_len = 6, and lose their end" in caplog.text
    batch = rows.batch(np.arange(4), None)
    assert batch["tokens"].shape == (4, 6)
    first = [model.id_to_token(i) for i in batch["tokens"][1]]
    assert first == ["[CLS]", "a", "dull", "film", "[SEP]", "[PAD]"]
    assert batch["segment_ids"][1].tolist() == [1, 1, 1, 1, 1, 0]
    cut = [model.id_to_token(i) for i in batch["tokens"][3]]
    assert (cut[0], cut[-1]) == ("[CLS]", "[SEP]"), "a long text is cut, and still ends"
    assert batch["label"].tolist() == [1, 0, 1, 0]


def test_what_it_needs_of_a_model(data):
    needs = data.requirements()
    assert needs == {"vocab_size": data.open_tokenizer().vocab_size, "max_seq_len": 6, "num_classes": 2}


def test_a_missing_tokenizer_is_named(data, tmp_path):
    import dataclasses

    with pytest.raises(ValueError, match=r"data\.tokenizer_path = .*: no such file"):
        dataclasses.replace(data, tokenizer_path=str(tmp_path / "none.json")).open("train")
