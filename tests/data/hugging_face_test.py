"""Objects of Hugging Face's `datasets`, made in memory or kept on disk, as the source of every kind
of data."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.core import user_code
from bigmodel_jax.data import HuggingFaceDataset, ImageData, ImageTextData, TextData, TokenizerConfig
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.text.question_answering import QuestionAnsweringData
from bigmodel_jax.data.text.text_pairs import TextPairData
from bigmodel_jax.data.text.token_labels import TokenLabelData

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is not installed")


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Not while tests are collected, by every worker: the package imports pandas."""
    global datasets
    import datasets


def picture(color) -> np.ndarray:
    return np.full((6, 4, 3), color, np.uint8)


def texts():
    columns = {"text": ["one two", "three"], "target": ["1 2", "3"], "label": [1, 0]}
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns) for split in ("train", "validation")})


def photos():
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    columns = {"image": [picture(9), picture(200)], "label": [1, 0], "text": ["dark", "light"]}
    whole = datasets.Dataset.from_dict(columns, features)
    return datasets.DatasetDict(train=whole, validation=whole.select([1]))


def pixels():
    return datasets.Dataset.from_dict({"image": [picture(9).tolist()], "label": [1]}, datasets.Features(
        {"image": datasets.Array3D((6, 4, 3), "uint8"), "label": datasets.Value("int64")}))  # fmt: skip


def records(make, split="train", limit=0):
    bad = BadRecords(limit)
    return [record for _, record in HuggingFaceDataset(make).records(split, None, bad)], bad.skipped


def test_texts_and_pairs_of_texts(tmp_path):
    source, tokens = HuggingFaceDataset(texts), TokenizerConfig(kind="bytes")
    rows = TextData(source=source, tokenizer=tokens, cache_dir=str(tmp_path), seq_len=8).open("train")
    assert rows.meta["bytes"] == len(b"one twothree")
    pairs = TextPairData(source=source, input_field="text", tokenizer=tokens, cache_dir=str(tmp_path))
    assert len(pairs.open("validation")) == 2


def test_pictures_with_classes_and_with_texts(tmp_path):
    source = HuggingFaceDataset(photos)
    data = ImageData(source=source, num_classes=2, cache_dir=str(tmp_path))
    rows = data.open("train")
    assert (rows.images[:, 0, 0, 0].tolist(), rows.labels.tolist()) == ([9, 200], [1, 0])
    assert source.labels() == ("cat", "dog")
    assert len(data.open("validation")) == 1
    pairs = ImageTextData(source=source, image_size=4, tokenizer=TokenizerConfig("bytes"), cache_dir=str(tmp_path))
    assert pairs.open("train").texts == ["dark", "light"]
    assert records(pixels)[0][0]["image"].dtype == np.uint8


def test_pictures_may_stay_files(tmp_path):
    data = ImageData(source=HuggingFaceDataset(photos), num_classes=2, image_size=4, cache_dir=str(tmp_path))
    rows = data.open("train")
    assert bytes(rows.images.content(0)[0]).startswith(b"\x89PNG")
    batch = rows.batch(np.arange(2), None)
    np.testing.assert_allclose(batch["image"], np.broadcast_to([[[[9]]], [[[200]]]], (2, 4, 4, 3)) / 255, atol=1e-6)
    assert batch["label"].tolist() == [1, 0]


def word_labels():
    names = datasets.ClassLabel(names=["O", "NAME"])
    features = {"words": datasets.List(datasets.Value("string")), "labels": datasets.List(names)}
    columns = {"words": [["Ada", "reads"], []], "labels": [[1, 0], None]}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_labels_of_words_come_by_name(tmp_path):
    found, _ = records(word_labels)
    assert found == [{"words": ["Ada", "reads"], "labels": ["NAME", "O"]}, {"words": [], "labels": None}]
    data = TokenLabelData(source=HuggingFaceDataset(word_labels), max_bad_records=1, cache_dir=str(tmp_path))
    assert data.labels() == ("NAME", "O")


def questions():
    answers = {"text": ["reads"], "answer_start": [4]}
    return datasets.Dataset.from_dict({"question": ["What?"], "context": ["Ada reads"], "answers": [answers]})


def test_questions_have_the_form_of_the_hub():
    data = QuestionAnsweringData(source=HuggingFaceDataset(questions))
    assert [e.answer for _, e in data._examples("train", BadRecords(0))] == [(4, 9)]


def damaged():
    good = io.BytesIO()
    Image.fromarray(picture(5)).save(good, "PNG")
    stored = [{"bytes": b, "path": None} for b in (good.getvalue(), b"no picture")]
    columns = {"image": stored, "label": [0, 1]}
    features = {"image": datasets.Image(), "label": datasets.Value("int32")}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def test_a_damaged_picture_is_a_bad_record():
    found, skipped = records(damaged, limit=1)
    assert len(found) == 1
    assert "not a readable picture" in skipped[0][1]


def test_a_field_that_is_not_there_is_one_line_that_names_those_that_are(tmp_path):
    with pytest.raises(ValueError, match="no field 'image'.*; its fields: text, target, label") as error:
        ImageData(source=HuggingFaceDataset(texts), cache_dir=str(tmp_path)).open("train")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="gives the splits train; 'validation' is needed"):
        records(word_labels, "validation")


def stream():
    return texts()["train"].to_iterable_dataset()


def test_what_is_no_dataset_is_one_line():
    for make, kind in ((stream, "IterableDataset"), (list, "list")):
        name = user_code.name_of("", make)
        with pytest.raises(ValueError, match=f"{name.split(':')[1]} returns {kind}; a datasets.Dataset"):
            records(make)


def first():
    return texts()["train"].select([0])


def from_disk():
    return datasets.load_from_disk(FOLDER[0])


FOLDER = []


def test_the_fingerprint_is_the_content_also_from_disk(tmp_path):
    texts()["train"].save_to_disk(tmp_path / "kept")
    FOLDER[:] = [str(tmp_path / "kept")]
    prints = [HuggingFaceDataset(make).fingerprint("train", tmp_path) for make in (texts, from_disk, first)]
    assert prints[0] == prints[1] != prints[2]
