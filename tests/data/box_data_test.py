"""Pictures with boxes: scenes, what a batch holds, records that cannot be used, COCO's files,
sizes, empty pictures."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from bigmodel_jax.data import BoxData, CocoFile, DigitScenes
from bigmodel_jax.data.images.boxes import brought, wrong
from bigmodel_jax.data.sources.source import Source

PICTURE = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30, 1)


@dataclasses.dataclass(frozen=True)
class Given(Source):
    """Records of the test."""

    rows: tuple = ()

    def fingerprint(self, split, root):
        return str(self.rows)

    def records(self, split, root, bad):
        for n, (boxes, classes) in enumerate(self.rows):
            yield f"record {n}", {"image": PICTURE, "boxes": boxes, "classes": classes}


def test_scenes_hold_boxes_around_their_digits(tmp_path):
    source = DigitScenes(train=20, validation=1, overlap=0.0)
    records = [record for _, record in source.records("train", tmp_path, None)]
    again = [record for _, record in source.records("train", tmp_path, None)]
    assert all(np.array_equal(a["boxes"], b["boxes"]) for a, b in zip(records, again, strict=True))
    for record in records:
        for (left, top, right, bottom), label in zip(record["boxes"].astype(int), record["classes"], strict=True):
            inside = record["mask"][top:bottom, left:right] == label
            assert all(inside.any(axis=axis)[[0, -1]].all() for axis in (0, 1)), "ink at all four edges"
    sizes = np.concatenate([r["boxes"][:, 3] - r["boxes"][:, 1] for r in records])
    assert sizes.max() > 1.4 * sizes.min()


def test_a_batch_has_shares_of_the_picture_and_places_without_objects(tmp_path):
    rows = (((((3, 2, 9, 12),), (4,))), ((), ()))
    data = BoxData(source=Given(rows=rows), max_objects=2, cache_dir=str(tmp_path), flip=True)
    batch = data.open("train").batch(np.array([0, 1]), None)
    assert batch["boxes"][0].tolist() == pytest.approx(np.array([[0.2, 0.35, 0.2, 0.5], [0, 0, 0, 0]]))
    assert batch["classes"].tolist() == [[4, -1], [-1, -1]]
    turned = data.open("train").batch(np.array([0]), np.array([1 << 63], np.uint64))
    assert turned["boxes"][0, 0].tolist() == pytest.approx([0.8, 0.35, 0.2, 0.5])
    assert np.array_equal(turned["image"], batch["image"][:1, :, ::-1])
    counts = data.open("train").counts()
    assert (counts["objects"], counts["pictures without objects"]) == (1, 1)


@pytest.mark.parametrize(("box", "label", "said"), [
    ((9, 2, 3, 12), 4, r"box 0, \[9.0, 2.0, 3.0, 12.0\] .* is inverted or empty"),
    ((3, 2, 3, 12), 4, "is inverted or empty"),
    ((40, 2, 50, 12), 4, "lies outside the picture of 30 x 20 pixels"),
    ((20, 2, 40, 12), 4, "reaches beyond the picture of 30 x 20 pixels; data.outside = 'clip' cuts it"),
    ((3, 2, float("nan"), 12), 4, "is not finite"),
    ((3, 2, 9, 12), 11, r"class 11 of box 0 is not listed; classes are 0 .. 10 \(data.num_classes\)"),
    ((3, 2, 9), 4, r"boxes must be \(N, 4\)"),
])  # fmt: skip
def test_a_record_that_cannot_be_used_is_named_in_one_line(tmp_path, box, label, said):
    data = BoxData(source=Given(rows=(((box,), (label,)),)), cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=rf"record 0.*{said}") as error:
        data.open("train")
    assert "\n" not in str(error.value)


def test_more_objects_than_there_are_places_for(tmp_path):
    record = {"image": PICTURE, "boxes": [(1, 1, 2, 2)] * 3, "classes": [1, 1, 1]}
    assert wrong(BoxData(max_objects=2), record) == "3 objects; data.max_objects = 2 allows no more"
    assert not wrong(BoxData(max_objects=3), record)


def test_boxes_are_cut_at_the_edge_and_counted(tmp_path):
    source = Given(rows=((((20, -5, 40, 12), (1, 1, 3, 3)), (4, 5)),))
    rows = BoxData(source=source, outside="clip", max_objects=2, cache_dir=str(tmp_path)).open("train")
    assert rows.counts()["clipped boxes"] == 1
    assert rows.boxes[0, 0].tolist() == pytest.approx([25 / 30, 6 / 20, 10 / 30, 12 / 20])


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
def test_boxes_follow_pictures_of_any_aspect_ratio(tmp_path, fit):
    """A white square's box lies around the white pixels after the picture is resized."""
    image = np.zeros((40, 80, 1), np.uint8)
    image[12:28, 30:50] = 255
    data = BoxData(image_size=(48, 48), fit=fit, cache_dir=str(tmp_path), max_objects=1)
    picture, found, _ = brought(data, {"image": image, "boxes": [(30, 12, 50, 28)], "classes": [1]})
    rows, columns = np.nonzero(picture[..., 0] > 127)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found[0] - seen).max() <= 1


def coco(folder, **changes):
    Image.fromarray(PICTURE[..., 0]).save(folder / "a.png")
    table = {
        "images": [{"id": 7, "file_name": "a.png", "width": 30, "height": 20}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [3, 2, 6, 10]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 30, 20], "iscrowd": 1},
        ],
    }
    (folder / "train.json").write_text(json.dumps(table | changes))
    return BoxData(source=CocoFile(train=str(folder / "train.json")), max_objects=2, cache_dir=str(folder / "cache"))


def test_a_file_as_coco_writes_it(tmp_path):
    batch = coco(tmp_path).open("train").batch(np.array([0]), None)
    assert batch["classes"].tolist() == [[2, -1]], "the second category by its id; crowds are left out"
    assert batch["boxes"][0, 0].tolist() == pytest.approx([0.2, 0.35, 0.2, 0.5])


@pytest.mark.parametrize(("changes", "said"), [
    ({"annotations": [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [3, 2, 6, 10]}]},
     "image 7.*annotation 1: category_id = 5 is not listed; the file's categories: 3, 90"),
    ({"annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [3, 2, 6]}]}, "annotation 1: bbox = .*four numbers"),
    ({"annotations": [{"id": 1, "image_id": 8, "category_id": 3, "bbox": [3, 2, 6, 10]}]},
     "annotation 0.*image_id = 8 is not among its images"),
    ({"images": [{"id": 7, "file_name": "a.png", "width": 31}]}, "image 7.*width = 31, but a.png has 30 x 20 pixels"),
    ({"categories": 3}, "has no list 'categories' of JSON objects"),
])  # fmt: skip
def test_a_mistake_in_such_a_file_is_named_with_its_place(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said) as error:
        coco(tmp_path, **changes).open("train")
    assert "\n" not in str(error.value)
