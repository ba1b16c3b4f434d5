"""Folders of pictures by class: numbers by name, sizes, what is left out and what is a bad
record."""

import json

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.data import ImageData, ImageFolders

COLORS = {"cat": (200, 0, 0), "dog": (0, 200, 0), "owl": (0, 0, 200)}


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "validation"):
        for name, color in COLORS.items():
            folder = tmp_path / split / name / "more"
            folder.mkdir(parents=True)
            for i, size in enumerate([(8, 12), (20, 8)]):
                Image.new("RGB", size, color).save((folder.parent, folder)[i] / f"{i}.png")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "train" / "cat" / "again").symlink_to(tmp_path / "train")
    return tmp_path


def data(folder, **more):
    source = ImageFolders(train=str(folder / "train"), validation=str(folder / "validation"), image_size=8)
    return ImageData(source=source, num_classes=3, cache_dir=str(folder / "cache"), **more)


def test_pictures_are_read_with_the_number_of_their_folder(photos):
    rows = data(photos).open("train")
    batch = rows.batch(np.arange(6), None)
    assert batch["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["image"].shape == (6, 8, 8, 3)
    colors = np.repeat(np.array(list(COLORS.values()), np.float32) / 255, 2, axis=0)[:, None, None]
    np.testing.assert_allclose(batch["image"], np.broadcast_to(colors, (6, 8, 8, 3)), atol=1e-6)
    assert data(photos).requirements() == {"num_classes": 3, "image_shape": (8, 8, 3)}


def test_the_names_of_the_classes_are_kept_in_the_runs_folder(photos, tmp_path):
    data(photos).save_artifacts(tmp_path)
    assert json.loads((tmp_path / "vocabulary.json").read_text())["labels"] == ["cat", "dog", "owl"]
    assert data(photos).conditions(4)[1] == ["cat", "dog", "owl", "cat"]


def test_a_changed_picture_is_read_anew(photos):
    before = data(photos).open("train").batch(np.arange(1), None)["image"]
    Image.new("RGB", (8, 8), (9, 9, 9)).save(photos / "train" / "cat" / "0.png")
    assert not np.array_equal(before, data(photos).open("train").batch(np.arange(1), None)["image"])


def test_a_resume_compares_the_content_of_the_pictures(photos):
    found = data(photos).reads()
    assert [path.name for path in found["data.source.train"]] == ["0.png", "1.png"] * 3
    assert set(found) == {"data.source.train", "data.source.validation"}


def test_what_is_no_picture_or_of_no_class_is_a_bad_record(photos):
    (photos / "train" / "dog" / "notes.txt").write_text("a dog")
    with pytest.raises(ValueError, match="notes.txt is not a readable picture"):
        data(photos).open("train")
    assert len(data(photos, max_bad_records=1).open("train")) == 6
    (photos / "validation" / "dgo").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "validation" / "dgo" / "0.png")
    with pytest.raises(ValueError, match=r"class 'dgo' is not in data.source.train \(perhaps you meant 'dog'\)"):
        data(photos).open("validation")


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("", "data.source.train: '' is not a folder"),
        ("nowhere", "nowhere' is not a folder"),
        ("empty", "holds no folders"),
    ],
)
def test_folders_that_are_not_there_are_one_line(tmp_path, train, says):
    (tmp_path / "empty").mkdir()
    source = ImageFolders(train=str(tmp_path / train) if train else "")
    with pytest.raises(ValueError, match=says):
        ImageData(source=source, cache_dir=str(tmp_path / "cache")).open("train")
