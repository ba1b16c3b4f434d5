import dataclasses

import numpy as np
import pytest

from bigmodel_jax.config import Config, override
from bigmodel_jax.core import dataclass_json
from bigmodel_jax.data.images import image_rows
from bigmodel_jax.data.images.augment import Flip, RandomResizedCrop
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.data.images.mix import CutMix, Mixup
from bigmodel_jax.data.images.rand_augment import RandAugment
from bigmodel_jax.data.sources.sources import Arrays
from bigmodel_jax.models import MLPConfig
from bigmodel_jax.objectives import Classification

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
        ({"num_classes": 1}, r"data\.num_classes = 1; it must be at least 2"),
        ({"max_shift": -1}, r"data\.max_shift = -1"),
        ({"source": Arrays(f"{__name__}:make_ragged")}, r"record 1: shape \(3, 2, 1\), but the first .* \(2, 2, 1\)"),
    ],
)
def test_bad_data_is_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(tmp_path), **changes).open("train")


def test_a_config_of_before_these_fields_opens():
    old = dataclass_json.to_json(ImageData(max_shift=2))
    known = {"type", "cache_dir", "max_bad_records", "source", "num_classes", "max_shift"}
    assert dataclass_json.from_json({name: value for name, value in old.items() if name in known}) == ImageData(
        max_shift=2
    )


def test_augmentation_is_kept_in_the_config_and_set_from_the_command_line():
    data = ImageData(augment=(RandomResizedCrop(), RandAugment()), mix=(Mixup(), CutMix()), normalise="train")
    assert dataclass_json.from_json(dataclass_json.to_json(data)) == data
    changed = override(
        Config(MLPConfig(), Classification(), data),
        ["--data.augment.0.area", "0.2", "1", "--data.augment.1.magnitude", "5", "--data.mix.0.alpha", "0.8"],
    ).data
    assert changed.augment == (RandomResizedCrop(area=(0.2, 1.0)), RandAugment(magnitude=5))
    assert changed.mix == (Mixup(alpha=0.8), CutMix())
    with pytest.raises(ValueError, match=r"data\.augment\.0\.area = 0\.0; it must be above 0"):
        override(Config(MLPConfig(), Classification(), data), ["--data.augment.0.area", "0", "1"])


def test_small_images_are_augmented_too(tmp_path):
    rows = config(tmp_path, augment=(RandomResizedCrop(), Flip()), normalise="train").open("train")
    noise = np.arange(20, dtype=np.uint64)
    plain, one, other = (rows.batch(np.arange(20), bits)["image"] for bits in (None, noise, noise + np.uint64(99)))
    assert plain.shape == one.shape == (20, 5, 4, 3)
    assert not np.array_equal(one, plain)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one[7:9], rows.batch(np.arange(7, 9), noise[7:9])["image"])
    np.testing.assert_array_equal(plain, rows.batch(np.arange(20), None)["image"])


def make_floats():
    return {"train": {"image": np.zeros((3, 4, 4, 3), np.float32), "label": [0, 1, 2]}}


def test_augmentation_needs_bytes(tmp_path):
    data = config(tmp_path, augment=(Flip(),))
    with pytest.raises(
        ValueError, match=r"data\.augment needs uint8 images of 1 or 3 channels; records are float32 \(4, 4, 3\)"
    ):
        dataclasses.replace(data, source=Arrays(f"{__name__}:make_floats")).open("train")
