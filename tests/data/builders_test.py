import subprocess
import sys

import numpy as np
import pytest

from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.image import ImageData
from bigmodel_jax.data.sources import Tfds

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits(cache_dir):
    cfg = ImageData(cache_dir=str(cache_dir), source=Tfds("digits"))
    return {split: cfg.open(split) for split in ("train", "validation")}


def test_digits_are_scikit_learns(digits):
    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    mine = np.concatenate([r.images for r in digits.values()]).reshape(-1, 64)
    expected = np.round(images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, mine)) == sorted(map(bytes, expected))
    assert np.concatenate([r.labels for r in digits.values()]).sum() == labels.sum()


def test_split_is_stratified_and_disjoint(digits):
    train, validation = (np.bincount(digits[s].labels) for s in ("train", "validation"))
    assert np.all(np.abs(validation / (train + validation) - 0.2) < 0.01)
    overlap = set(map(bytes, digits["train"].images)) & set(map(bytes, digits["validation"].images))
    assert not overlap


def test_any_tfds_split_can_be_asked_for(cache_dir, digits):
    source = Tfds("digits", eval_split="train[:10]")
    records = list(source.records("validation", cache_dir, BadRecords(0)))
    assert len(records) == 10
    with pytest.raises(ValueError, match=r"data\.source\.eval_split: 'test' is no split of digits, which has"):
        list(Tfds("digits", eval_split="test").records("validation", cache_dir, BadRecords(0)))


def test_a_prepared_folder_is_read_by_name(cache_dir, digits):
    """As any TFDS set in a data_dir, from a process that does not know the builder's class, and without TensorFlow."""
    code = f"""
import sys
from pathlib import Path
from bigmodel_jax.data import packaged, sources
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
