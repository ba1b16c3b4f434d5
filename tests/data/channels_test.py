"""Mean and spread of the training split: numpy's, fitted on training alone, kept and used by a
run's evaluation."""

import json

import numpy as np
import pytest

from bigmodel_jax.data import Arrays, CsvFiles, ImageData, Tables, TabularData
from bigmodel_jax.data.images import channels
from bigmodel_jax.data.images.channels import Channels

IMAGES = np.random.default_rng(0).integers(0, 200, (300, 5, 4, 3), np.uint8)
SPLITS = {"train": IMAGES[:280], "validation": IMAGES[280:]}


def make_images():
    return {split: {"image": x, "label": np.zeros(len(x), int)} for split, x in SPLITS.items()}


def config(tmp_path, **more):
    return ImageData(source=Arrays(f"{__name__}:make_images"), num_classes=2, cache_dir=str(tmp_path), **more)


def test_bytes_are_fitted_exactly():
    images = IMAGES.copy()
    images[..., 2] = 7
    found = channels.of_bytes(map(channels.histogram, channels.chunks(images, 100)))
    units = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, units.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.spread[:2], units[:, :2].std(0), rtol=1e-12)
    assert found.spread[2] == 1, "of a constant channel"


def test_floats_are_fitted_whatever_their_mean():
    values = np.random.default_rng(1).normal([1e6, 0, 3], [1e-2, 1, 0], (1000, 3))
    found = channels.of_floats(channels.chunks(values, 77))
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.spread, [*values[:, :2].std(0), 1], rtol=1e-6)


def test_what_is_shown_is_the_image_again():
    found = Channels((0.5, 0.1, 0.2), (0.2, 0.3, 0.4))
    np.testing.assert_allclose(found.shown(found.floats(IMAGES)), IMAGES / 255, atol=1e-6)


def test_training_has_mean_0_and_spread_1_and_validation_the_same_numbers(tmp_path):
    data = config(tmp_path, normalise="train")
    train, held = (data.open(split).batch(np.arange(20), None)["image"] for split in ("train", "validation"))
    every = data.open("train").batch(np.arange(280), None)["image"]
    np.testing.assert_allclose(every.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(every.std((0, 1, 2)), 1, rtol=1e-5)
    mean, spread = (SPLITS["train"] / 255).mean((0, 1, 2)), (SPLITS["train"] / 255).std((0, 1, 2))
    np.testing.assert_allclose(held, (SPLITS["validation"] / 255 - mean) / spread, atol=1e-5)
    given = config(tmp_path, normalise="given", mean=tuple(mean.tolist()), spread=tuple(spread.tolist()))
    np.testing.assert_array_equal(given.open("train").batch(np.arange(20), None)["image"], train)


@pytest.mark.parametrize("kind", ["images", "features", "table"])
def test_validation_values_have_no_influence(kind, tmp_path, monkeypatch):
    """Extreme values in the validation split change neither a training batch nor the saved
    statistics."""

    def seen(extreme):
        if kind == "images":
            monkeypatch.setitem(SPLITS, "validation", np.full((20, 5, 4, 3), 255 if extreme else 1, np.uint8))
            data = config(tmp_path, normalise="train")
        else:
            (tmp_path / "train.csv").write_text("x,y,label\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(9)))
            far = "x,y,label\n1e9,-1e9,0\n1e9,5,1\n" if extreme else "x,y,label\n1,2,0\n3,4,1\n"
            (tmp_path / "held.csv").write_text(far)
            paths = str(tmp_path / "train.csv"), str(tmp_path / "held.csv")
            more = {"cache_dir": str(tmp_path / "cache")}
            if kind == "features":
                data = ImageData(source=CsvFiles(*paths), num_classes=2, normalise="train", **more)
            else:
                data = TabularData(source=Tables(*paths), target=("label",), num_classes=2, **more)
        data.save_artifacts(tmp_path)
        batch = data.open("train").batch(np.arange(9), None)
        held = data.open("validation").batch(np.arange(2), None)
        return batch["features" if kind == "table" else "image"], (tmp_path / "scaling.json").read_text(), held

    (batch, kept, held), (batch_too, kept_too, held_too) = seen(False), seen(True)
    np.testing.assert_array_equal(batch, batch_too)
    assert kept == kept_too
    assert any(not np.array_equal(held[name], held_too[name]) for name in held), "the validation split did change"


def test_a_run_evaluates_with_the_numbers_it_was_trained_with(tmp_path, monkeypatch):
    data = config(tmp_path / "cache", normalise="train")
    assert data.of_run(tmp_path) is data, "a folder that holds no numbers"
    data.save_artifacts(tmp_path)
    before = data.open("validation").batch(np.arange(5), None)["image"]
    assert json.loads((tmp_path / "scaling.json").read_text())["image"].keys() == {"mean", "scale"}
    monkeypatch.setitem(SPLITS, "train", IMAGES[:280] // 3)
    assert not np.array_equal(data.open("validation").batch(np.arange(5), None)["image"], before)
    after = data.of_run(tmp_path).open("validation").batch(np.arange(5), None)["image"]
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalise": "given"}, r"data\.mean = \(\), data\.spread = \(\); each must have a number for every channel"),
        ({"mean": (0.5,), "spread": (1.0,)}, "with data.normalise = 'given', and none otherwise; it is 'none'"),
        ({"normalise": "given", "mean": (0.5,), "spread": ()}, r"data\.mean = \(0.5,\), data\.spread = \(\)"),
        ({"normalise": "given", "mean": (0.5,) * 2, "spread": (1.0,) * 2}, r"2 numbers.* images have 3 channels"),
    ],
)
def test_numbers_that_do_not_fit_are_one_line(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        config(tmp_path, **changes).open("train")
