import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.data.sources.sources import Tfds

# Imported where it is read, and not while tests are collected: that takes 1.5 s of every worker.
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="scikit-learn is not installed")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(cache_dir):
    cfg = ImageData(cache_dir=str(cache_dir), source=Tfds("digits"))
    return {split: cfg.open(split) for split in ("train", "validation")}


def test_digits_are_scikit_learns(digits):
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    mine = np.concatenate([r.images for r in digits.values()]).reshape(-1, 64)
    expected = np.round(images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, mine)) == sorted(map(bytes, expected))
    assert np.concatenate([r.labels for r in digits.values()]).sum() == labels.sum()


def test_split_is_stratified_and_disjoint(digits):
    train, validation = (np.bincount(digits[s].labels) for s in ("train", "validation"))
    assert np.all(np.abs(validation / (train + validation) - 0.2) < 0.01)
    overlap = set(map(bytes, digits["train"].images)) & set(map(bytes, digits["validation"].images))
    assert not overlap


def test_pictures_of_a_set_may_stay_files(cache_dir, digits):
    cfg = ImageData(cache_dir=str(cache_dir), source=Tfds("digits"), image_size=8, eval_crop=1.0)
    rows, chosen = cfg.open("validation"), np.array([3, 77])
    assert bytes(rows.images.content(3)[0]).startswith(b"\x89PNG")
    got, want = (one.batch(chosen, None) for one in (rows, digits["validation"]))
    np.testing.assert_array_equal(got["image"], want["image"].repeat(3, axis=3))
    np.testing.assert_array_equal(got["label"], want["label"])


def test_any_tfds_split_can_be_asked_for(cache_dir, digits):
    source = Tfds("digits", eval_split="train[:10]")
    records = list(source.records("validation", cache_dir, BadRecords(0)))
    assert len(records) == 10
    with pytest.raises(ValueError, match=r"data\.source\.eval_split: 'test' is no split of digits, which has"):
        list(Tfds("digits", eval_split="test").records("validation", cache_dir, BadRecords(0)))


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (
            "validation[:0%]",
            "of digits is empty: it has train (1,442 records), validation (355 records); take more of it",
        ),
        ("validation[5:5]", "is empty"),
        ("validation[9999:]", "Requested slice [9999:355] incompatible with 355 examples.; it has train"),
        ("train[:200%]", "percent slice boundaries should be in [-100, 100]"),
        ("train[:x]", "Unrecognized split format: 'train[:x]'"),
    ],
)
def test_a_split_without_records_is_refused_with_the_reason(cache_dir, digits, split, says):
    with pytest.raises(ValueError) as error:
        list(Tfds("digits", eval_split=split).records("validation", cache_dir, BadRecords(0)))
    assert str(error.value).startswith(f"data.source.eval_split: {split!r}")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_tfds_imports_for_downloads_is_installed(tmp_path):
    """TFDS reads the checksums of its own sets through importlib_resources, and does not declare
    that package."""
    import tensorflow_datasets as tfds

    assert len(tfds.builder("mnist", data_dir=tmp_path).url_infos) == 4


def test_a_package_that_a_builder_lacks_is_named(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def prepare(self, **options):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    with pytest.raises(
        ValueError, match=r"could not be: No module named 'tensorflow'; its TFDS builder needs the package"
    ):
        Tfds("mnist", data_dir=str(tmp_path)).fingerprint("train", tmp_path)


@pytest.mark.slow
def test_a_prepared_folder_is_read_by_name(cache_dir, digits):
    """A process reads the folder as any TFDS set in a data_dir, without the builder's class and
    without TensorFlow."""
    code = f"""
import sys
from pathlib import Path
from bigmodel_jax.data.sources import packaged, sources
packaged.PACKAGES.clear()
from bigmodel_jax.data.base import BadRecords
source = sources.Tfds("digits", data_dir={str(cache_dir / "tfds")!r})
print(len(source.fingerprint("train", Path("unused"))), len(list(source.records("train", Path("unused"), BadRecords(0)))))
assert "tensorflow" not in sys.modules
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["16", str(len(digits["train"]))]


def test_sotu_is_split_by_year(cache_dir):
    records = {s: [r for _, r in Tfds("sotu").records(s, cache_dir, BadRecords(0))] for s in ("train", "validation")}
    assert max(r["year"] for r in records["train"]) <= 2000 < min(r["year"] for r in records["validation"])
    assert sum(map(len, records.values())) == 237
    years = [r["year"] for r in records["train"]]
    assert years == sorted(years)
    assert records["train"][0]["text"].startswith("Fellow-Citizens")
