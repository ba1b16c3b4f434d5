"""Images with boxes in COCO's format: a folder of images, and one JSON file per split."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import paths
from bigmodel_jax.data import cache
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources.source import Source

LISTS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class CocoFile(Source):
    """Each of `train` and `validation` names a JSON file in COCO's format.

    It holds the lists "images" (id, file_name), "annotations" (image_id, category_id, bbox: left,
    top, width, height in pixels) and "categories" (id, name). A record has image, boxes and
    classes. Class 0 is the background, as in digit scenes and masks. Class n is the n-th category
    in the order of ids. Crowd annotations (iscrowd 1) are left out. An image without annotations
    has no objects.
    """

    compared: ClassVar = {"train": "training", "images": "place"}

    train: str = ""
    "the JSON file of the training split"
    validation: str = ""
    "the JSON file of the validation split"
    images: str = ""
    "folder of the images; empty: the folder of the JSON file"
    categories: tuple[str, ...] = ()
    "names of the categories that the file must list, in the order of ids; (): those of the file"

    def labels(self):
        return ("ground", *self.categories) if self.categories else ()

    def has(self, split, root):
        return bool(getattr(self, split, ""))

    def made_from(self, split, root):
        return [self._file(split)]

    def fingerprint(self, split, root):
        """Hash the JSON file's size and modification time. The image files are not checked."""
        return cache.key(str(self.images), self.categories, paths.stat(self._file(split)))

    def records(self, split, root, bad):
        file = self._file(split)
        table = _table(file)
        classes = self._classes(file, table["categories"])
        of_image: dict[Any, list[dict]] = {image["id"]: [] for image in table["images"]}
        for n, annotation in enumerate(table["annotations"]):
            if annotation.get("image_id") not in of_image:
                bad.skip(
                    f"{file}, annotation {n}", f"image_id = {annotation.get('image_id')!r} is not among its images"
                )
            # The box of a crowd surrounds many objects, so it is no target for a single one.
            elif not annotation.get("iscrowd"):
                # `place` names the annotation in messages where it has no id.
                of_image[annotation["image_id"]].append({"place": n, **annotation})
        folder = paths.expanded("data.source.images", self.images) if self.images else file.parent
        for image in table["images"]:
            where = f"{file}, image {image['id']}"
            try:
                found = _boxes(of_image[image["id"]], classes)
                picture = _picture(folder / str(image.get("file_name")), image)
            except ValueError as error:
                bad.skip(where, str(error))
                continue
            yield where, {"image": picture} | found

    def _classes(self, file: Path, categories: list[dict]) -> dict[int, int]:
        """Return {category id: class}."""
        # COCO's ids have gaps (its 80 categories reach id 90), so classes are counted anew.
        ordered = sorted(categories, key=lambda c: c["id"])
        names = tuple(str(c.get("name", c["id"])) for c in ordered)
        if self.categories and names != self.categories:
            raise ValueError(f"data.source.categories = {self.categories}, but {file} lists {names}")
        return {category["id"]: n for n, category in enumerate(ordered, 1)}

    def _file(self, split: str) -> Path:
        option, given = f"data.source.{split}", getattr(self, split)
        path = paths.expanded(option, given) if given else None
        if path is None or not path.is_file():
            raise ValueError(f"{option}: {given!r} is no file; it must be a JSON file of boxes as COCO writes them")
        return path


def _table(file: Path) -> dict[str, list[dict]]:
    """Read a COCO file, and check the three lists in it."""
    try:
        table = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not readable as JSON ({str(error)[:100]})") from None
    for name in LISTS:
        rows = table.get(name) if isinstance(table, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{file} has no list {name!r} of JSON objects; a COCO file has {', '.join(LISTS)}")
        for n, row in enumerate(rows if name != "annotations" else ()):
            if not isinstance(row.get("id"), int):
                raise ValueError(f"{file}: entry {n} of {name!r} has no whole number 'id'")
    return table


def _picture(path: Path, image: dict) -> np.ndarray:
    """Read an image. Raises ValueError where its size differs from that in the JSON file."""
    picture = pictures.read(path)
    height, width = picture.shape[:2]
    # Another size means that the boxes were drawn on another version of the image.
    for name, pixels in (("width", width), ("height", height)):
        if image.get(name, pixels) != pixels:
            raise ValueError(f"{name} = {image[name]}, but {path.name} has {width} x {height} pixels")
    return picture


def _boxes(annotations: list[dict], classes: dict[int, int]) -> dict[str, np.ndarray]:
    """Return boxes (N, 4), left, top, right, bottom, and classes (N,)."""
    boxes, found = [], []
    for annotation in annotations:
        label, box = annotation.get("category_id"), annotation.get("bbox")
        said = f"annotation {annotation.get('id', annotation['place'])}:"
        if label not in classes:
            listed = ", ".join(map(str, list(classes)[:20]))
            raise ValueError(f"{said} category_id = {label!r} is not listed; the file's categories: {listed}")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, int | float) for x in box):
            raise ValueError(f"{said} bbox = {box!r}; it must be four numbers: left, top, width, height")
        left, top, width, height = box
        boxes.append([left, top, left + width, top + height])
        found.append(classes[label])
    # Without objects, `reshape` gives the shape (0, 4) that `BoxData` expects.
    return {"boxes": np.array(boxes, np.float64).reshape(-1, 4), "classes": np.array(found, np.int64)}
