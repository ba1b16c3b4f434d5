import numpy as np
import pytest

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images.image import ImageData, image_shape
from bigmodel_jax.data.sources.sources import Arrays, CsvFiles, TextFiles, Tfds


def records(source, root, split="train", limit=0):
    bad = BadRecords(limit)
    return [r for _, r in source.records(split, root, bad)], bad.skipped


def write(path, text):
    path.write_text(text)
    return str(path)


def test_text_files_are_one_document_each_sorted_by_name(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name, "utf-8")
    found, _ = records(TextFiles(f"{tmp_path}/c.txt, {tmp_path}/[ab].txt"), tmp_path)
    assert [r["text"] for r in found] == ["c", "a", "b"]


def test_fingerprint_follows_the_content(tmp_path):
    path = write(tmp_path / "a.txt", "one")
    first = TextFiles(path, path).fingerprint("train", tmp_path)
    assert TextFiles(path, path).fingerprint("validation", tmp_path) == first
    write(tmp_path / "a.txt", "two")
    assert TextFiles(path, path).fingerprint("train", tmp_path) != first


def test_csv_columns_by_name(tmp_path):
    path = write(tmp_path / "t.csv", "x,label,y\n1,0,2\n3,1,4.5\n")
    found, _ = records(CsvFiles(path), tmp_path)
    assert [(r["features"].tolist(), r["label"]) for r in found] == [([1, 2], 0), ([3, 4.5], 1)]
    found, _ = records(CsvFiles(path, features=("y",)), tmp_path)
    assert [r["features"].tolist() for r in found] == [[2], [4.5]]


def test_csv_as_classification_data(tmp_path):
    path = write(tmp_path / "t.csv", "x,label,y\n1,0,2\n3,1,4.5\n")
    cfg = ImageData(cache_dir=str(tmp_path), source=CsvFiles(path, path), num_classes=2)
    batch = cfg.open("train").batch(np.array([1]), None)
    assert (batch["image"].tolist(), batch["label"].tolist()) == ([[3.0, 4.5]], [1])
    assert image_shape(cfg) == (2,)


BAD_ROWS = {
    "too few cells": ("1,0", "2 cells, but the header has 3"),
    "not a number": ("one,0,2", "could not convert"),
    "label not whole": ("1,0.5,2", "invalid literal"),
    "label out of range": ("1,7,2", "label 7 is not in 0 .. 1"),
    "negative label": ("1,-1,2", "label -1 is not in 0 .. 1"),
    "not finite": ("nan,1,2", "not finite"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_or_skipped(tmp_path, case):
    row, reason = BAD_ROWS[case]
    path = write(tmp_path / "t.csv", f"x,label,y\n1,0,2\n{row}\n3,1,4\n")

    def cfg(limit):
        return ImageData(cache_dir=str(tmp_path), source=CsvFiles(path), num_classes=2, max_bad_records=limit)

    with pytest.raises(ValueError, match=reason) as error:
        cfg(0).open("train")
    assert f"{path} line 3" in str(error.value)
    rows = cfg(1).open("train")
    assert rows.labels.tolist() == [0, 1]
    assert len(rows.meta["bad_records"]) == 1


def test_misspelt_column_is_suggested(tmp_path):
    path = write(tmp_path / "t.csv", "x,label\n1,0\n")
    with pytest.raises(ValueError, match=r"data\.source\.label: .*'lable' .perhaps you meant 'label'"):
        records(CsvFiles(path, label="lable"), tmp_path)


def make_columns():
    return {"train": {"image": np.zeros((3, 2, 2, 1), np.float32), "label": [0, 1, 2]}}


def test_arrays_come_from_a_named_function(tmp_path):
    found, _ = records(Arrays(f"{__name__}:make_columns"), tmp_path)
    assert [r["label"] for r in found] == [0, 1, 2]
    for name in ("nowhere:f", f"{__name__}:missing", "no_colon"):
        with pytest.raises(ValueError, match=rf"data\.source\.function: '{name}'"):
            records(Arrays(name), tmp_path)


def test_empty_split_is_named(tmp_path):
    cfg = ImageData(cache_dir=str(tmp_path), source=Arrays(f"{__name__}:make_columns"))
    with pytest.raises(ValueError, match=r"the validation split of .* has no examples"):
        cfg.open("validation")


def test_unknown_tfds_name_is_one_line_with_the_nearest(tmp_path):
    with pytest.raises(
        ValueError, match=r"data\.source\.name: no dataset 'mnist_5kk'.*perhaps you meant 'mnist_5k'"
    ) as error:
        records(Tfds("mnist_5kk", data_dir=str(tmp_path)), tmp_path)
    assert "\n" not in str(error.value)


def test_missing_package_is_named(tmp_path, monkeypatch):
    from bigmodel_jax.data.sources import packaged

    monkeypatch.setitem(packaged.PACKAGES, "digits", "not-a-package")
    way = r"which is not installed: uv sync --extra digits$"
    with pytest.raises(ValueError, match=rf"'digits' reads the package not-a-package, {way}"):
        Tfds("digits").fingerprint("train", tmp_path)
