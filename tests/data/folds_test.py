import collections
import csv
import dataclasses
import io
import random

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.data import (
    Arrays,
    ImageData,
    LabelledLines,
    TableFiles,
    TabularData,
    TextClassificationData,
    TextData,
)
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.holdout import folds
from bigmodel_jax.data.sources.fold import HeldOutFold
from bigmodel_jax.data.sources.image_folders import ImageFolders
from bigmodel_jax.data.sources.sources import JsonlFiles

LABELS = ["a"] * 23 + ["b"] * 11 + ["c"] * 6
UNITS = [f"{label}{n}".encode() for n, label in enumerate(LABELS)]


def by_fold(values, places, k):
    return [[value for value, place in zip(values, places, strict=True) if place == fold] for fold in range(k)]


@pytest.mark.parametrize("k", [2, 3, 5, 40])
def test_folds_partition_the_records_and_labels_are_spread_evenly(k):
    places = folds(UNITS, k, LABELS)
    parts = by_fold(UNITS, places, k)
    assert sorted(unit for part in parts for unit in part) == sorted(UNITS), "each record is in one fold"
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for label in "abc":
        counts = [sum(unit.startswith(label.encode()) for unit in part) for part in parts]
        assert max(counts) - min(counts) <= 1, label


def test_folds_without_labels_are_even_and_mix_them():
    places = folds(UNITS, 4)
    assert sorted(collections.Counter(places).values()) == [10, 10, 10, 10]
    assert len({tuple(sorted(collections.Counter(part).items())) for part in by_fold(LABELS, places, 4)}) > 1


def test_the_order_of_the_records_plays_no_part_and_the_seed_does():
    order = random.Random(0).sample(range(len(UNITS)), len(UNITS))
    places = folds(UNITS, 5, LABELS)
    moved = folds([UNITS[i] for i in order], 5, [LABELS[i] for i in order])
    assert [places[i] for i in order] == moved
    assert folds(UNITS, 5, LABELS, seed=1) != places


def test_equal_records_lie_in_one_fold_and_large_groups_are_balanced():
    sizes = [30, 20, 18, 12, 9, 6, 3, 1, 1]
    units = [f"{n}".encode() for n, size in enumerate(sizes) for _ in range(size)]
    places = folds(units, 3)
    assert all(len(set(by_fold(places, [p == unit for p in units], 2)[1])) == 1 for unit in set(units))
    counts = collections.Counter(places)
    assert max(counts.values()) - min(counts.values()) <= 3, counts


def test_more_folds_than_records_is_one_line():
    with pytest.raises(ValueError, match="^3 folds of 2 different records or groups: each fold needs at least one$"):
        folds([b"a", b"b", b"a"], 3)


# ---------------------------------------------------------------- sources


def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 4, 4, 1), np.uint8)
    images[29] = images[3]  # the same picture twice
    labels = np.array([0] * 15 + [1] * 10 + [2] * 5)
    patients = [f"p{n // 3}" for n in range(30)]
    return {
        "train": {"image": images, "label": labels, "patient": patients},
        "validation": {"image": images[:7], "label": labels[:7]},
    }


def whole(rows):
    return rows.batch(np.arange(len(rows)), None)


@pytest.mark.parametrize("together", ["", "patient"])
def test_image_folds_are_disjoint_and_whole(tmp_path, together):
    source = Arrays(arrays)
    every = whole(ImageData(source=source, num_classes=3, cache_dir=str(tmp_path)).open("train"))
    seen, patients = [], []
    for n in range(5):
        fold = HeldOutFold(source, k=5, fold=n, stratify="label", together=together)
        data = ImageData(source=fold, num_classes=3, cache_dir=str(tmp_path))
        train, held = (whole(data.open(split)) for split in ("train", "validation"))
        rows = {x.tobytes() for x in held["image"]}
        if not together:  # equal pictures of two patients lie where their patients do
            assert not rows & {x.tobytes() for x in train["image"]}, "nothing leaks"
        assert len(train["label"]) + len(held["label"]) == 30
        seen += [(x.tobytes(), int(label)) for x, label in zip(held["image"], held["label"], strict=True)]
        patients.append({r["patient"] for _, r in fold.records("validation", data.root(), BadRecords(0))})
        if not together:
            assert np.ptp([np.mean(held["label"] == c) - np.mean(every["label"] == c) for c in range(3)]) < 0.2
    assert sorted(seen) == sorted((x.tobytes(), int(c)) for x, c in zip(every["image"], every["label"], strict=True))
    assert (sum(map(len, patients)) == 10) == bool(together), "each patient is in one fold"


def test_counts_say_how_large_folds_and_labels_are(tmp_path):
    found = HeldOutFold(Arrays(arrays), k=5, stratify="label").counts(tmp_path)
    assert sum(found["records"]) == 30
    assert {label: sum(counts) for label, counts in found["labels"].items()} == {"0": 15, "1": 10, "2": 5}
    assert all(max(counts) - min(counts) <= 1 for counts in found["labels"].values())


def test_pictures_that_stay_files_are_folded_by_their_content(tmp_path):
    for n in range(12):
        folder = tmp_path / "pictures" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = np.full((8, 8, 3), 20 * n, np.uint8)
        (folder / f"{n}.png").write_bytes(png(picture))
    (tmp_path / "pictures/a/again.png").write_bytes((tmp_path / "pictures/a/0.png").read_bytes())
    source, sizes = ImageFolders(train=str(tmp_path / "pictures"), image_size=8), []
    for n in range(3):
        fold = HeldOutFold(source, k=3, fold=n, stratify="label")
        data = ImageData(source=fold, num_classes=2, image_size=8, cache_dir=str(tmp_path / "cache"))
        held, train = (whole(data.open(split))["image"] for split in ("validation", "train"))
        assert not {x.tobytes() for x in held} & {x.tobytes() for x in train}
        assert len(held) + len(train) == 13
        sizes.append(len(held))
    assert sum(sizes) == 13


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return file.getvalue()


def test_rows_of_a_table_and_their_scaling_are_those_of_the_fold(tmp_path):
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "site"])
        writer.writerows([[n, n % 4 // 3, f"s{n % 7}"] for n in range(42)])
    found = []
    for n in range(3):
        source = HeldOutFold(TableFiles(train=str(path)), k=3, fold=n, stratify="y", together="site")
        data = TabularData(source=source, target=("y",), features=("x",), num_classes=2, cache_dir=str(tmp_path / "c"))
        train, held = data.open("train"), data.open("validation")
        assert train.features.mean() == pytest.approx(0, abs=1e-6), "scaled by the training folds alone"
        assert len(train) + len(held) == 42
        found.append(len(held))
    assert sum(found) == 42


def test_texts_are_folded_with_their_vocabulary(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"word{n} and more\t{'yes' if n % 3 else 'no'}\n" for n in range(24)))
    data = TextClassificationData(source=LabelledLines(train=str(path)), cache_dir=str(tmp_path / "c"))
    texts = set()
    for n in range(4):
        own = dataclasses.replace(data, source=HeldOutFold(data.source, k=4, fold=n, stratify="label"))
        held, train = (own.examples(split)[0] for split in ("validation", "train"))
        assert not set(held) & set(train)
        assert sum(label == "no" for _, label in held) == 2
        texts |= set(held)
    assert len(texts) == 24


def test_documents_are_folded_whole(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "document {n} " }}\n' for n in range(9)))
    source = JsonlFiles(train=str(tmp_path / "a.jsonl"))
    assert TextData(source=HeldOutFold(source, k=3)).reads()["data.source.source.train"] == [tmp_path / "a.jsonl"]
    parts = [
        {r["text"] for _, r in HeldOutFold(source, k=3, fold=n).records("validation", tmp_path / "c", BadRecords(0))}
        for n in range(3)
    ]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert len(set.union(*parts)) == 9


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"k": 5, "fold": 5}, "data.source.fold = 5; it must be below data.source.k = 5"),
        ({"k": 31}, "31 folds of 29 different records"),
        ({"stratify": "lable"}, r"data.source.stratify = 'lable': .* record 0: no field 'lable' .*'label'"),
        ({"together": "person"}, "data.source.together = 'person': .* no field 'person'"),
        ({"k": 11, "together": "patient"}, "11 folds of 10 different records or groups"),
    ],
)
def test_what_cannot_be_folded_is_one_line(tmp_path, how, message):
    with pytest.raises(ValueError, match=message) as caught:
        HeldOutFold(Arrays(arrays), **how).counts(tmp_path)
    assert "\n" not in str(caught.value)
