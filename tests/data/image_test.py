import numpy as np
import pytest

from bigmodel_jax.data.images import image_rows
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.data.sources.sources import Arrays

LABELS = np.arange(20) % 4


def make_arrays():
    images = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), np.uint8)
    split = {"image": images, "label": LABELS}
    return {"train": split, "validation": split}


def config(tmp_path, **changes):
    return ImageData(cache_dir=str(tmp_path), source=Arrays(f"{__name__}:make_arrays"), num_classes=4, **changes)


def test_bytes_become_unit_floats(tmp_path):
    batch = config(tmp_path).open("train").batch(np.array([3, 1]), None)
    np.testing.assert_allclose(batch["image"], make_arrays()["train"]["image"][[3, 1]] / 255, rtol=1e-6)
    assert batch["image"].dtype == np.float32
    assert batch["label"].tolist() == LABELS[[3, 1]].tolist()
    assert batch["weights"].tolist() == [1, 1]


def test_shift_moves_by_whole_pixels_and_keeps_what_stays_inside():
    images = np.zeros((200, 7, 7, 1), np.uint8)
    images[:, 3, 3] = 1
    moved = image_rows.shift(images, np.random.default_rng(0).integers(0, 1 << 63, 200).astype(np.uint64), 2)
    at = np.argwhere(moved[..., 0])
    assert len(at) == 200
    places = {tuple(p) for p in (at[:, 1:] - 3).tolist()}
    assert places == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_shift_brings_in_black():
    noise = np.arange(9, dtype=np.uint64)
    moved = image_rows.shift(np.ones((9, 4, 4, 1), np.uint8), noise, 1)
    assert sorted(moved.sum(axis=(1, 2, 3)).tolist()) == [9] * 4 + [12] * 4 + [16]


def test_only_training_is_shifted(tmp_path):
    rows = config(tmp_path, max_shift=1).open("train")
    indices = np.arange(20)
    plain = rows.batch(indices, None)["image"]
    np.testing.assert_array_equal(plain, config(tmp_path).open("train").batch(indices, None)["image"])
    assert not np.array_equal(plain, rows.batch(indices, indices.astype(np.uint64))["image"])


def test_requirements(tmp_path):
    assert config(tmp_path).requirements() == {"num_classes": 4, "image_shape": (5, 4, 3)}


def make_ragged():
    return {"train": {"image": [np.zeros((2, 2, 1)), np.zeros((3, 2, 1))], "label": [0, 1]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, r"record 3: label 3 is not in 0 \.\. 2 \(data\.num_classes\)"),
        ({"num_classes": 1}, r"data\.num_classes: 1; at least 2"),
        ({"max_shift": -1}, r"data\.max_shift: -1"),
        ({"source": Arrays(f"{__name__}:make_ragged")}, r"record 1: shape \(3, 2, 1\), but the first .* \(2, 2, 1\)"),
    ],
)
def test_bad_data_is_one_line(tmp_path, changes, message):
    import dataclasses

    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(tmp_path), **changes).open("train")
