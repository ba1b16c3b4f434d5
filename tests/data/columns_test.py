"""Arrays that are written row by row: the files are numpy's, and no split is whole in memory."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.images.image import ImageData
from bigmodel_jax.data.sources.source import Source


@pytest.mark.parametrize("rows", [0, 1, 12_345])
def test_the_file_is_what_numpy_writes(tmp_path, rows):
    whole = np.arange(rows * 6, dtype=np.int32).reshape(rows, 2, 3)
    with Column(tmp_path / "a.npy") as column:
        for row in whole[: rows // 2]:
            column.append(row)
        if rows:
            column.extend(whole[rows // 2 :])
    found = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert (found == whole).all() if rows else len(found) == 0
    assert column.rows == rows


@dataclasses.dataclass(frozen=True)
class Many(Source):
    rows: int = 1200

    def fingerprint(self, split, root):
        return "many"

    def records(self, split, root, bad):
        for i in range(self.rows):
            yield f"record {i}", {"image": np.full((100, 100, 3), i % 256, np.uint8), "label": i % 10}


def test_images_are_not_held_in_memory_while_they_are_prepared(tmp_path):
    tracemalloc.start()
    rows = ImageData(source=Many(), cache_dir=str(tmp_path)).open("train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.images.nbytes == 36_000_000 > 3 * peak, peak
    assert rows.images[1199, 0, 0, 0] == 1199 % 256


@dataclasses.dataclass(frozen=True)
class Mixed(Many):
    """Whole numbers first, as JSON writes them, then a bytes' picture."""

    def records(self, split, root, bad):
        for image in ([1, 2], [1.5, 3], np.zeros(2, np.uint8)):
            yield str(image), {"features": image, "label": 1}


def test_whole_numbers_and_others_are_one_kind_and_bytes_another(tmp_path):
    rows = ImageData(source=Mixed(), cache_dir=str(tmp_path), max_bad_records=1).open("train")
    assert rows.images.tolist() == [[1.0, 2.0], [1.5, 3.0]]
    assert rows.meta["bad_records"][0][1] == "uint8 values, but the first example has float32"
