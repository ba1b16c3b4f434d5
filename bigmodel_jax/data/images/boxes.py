"""Images with bounding boxes, checked and decoded once into the cache."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodel_jax.core.ranges import Classes, Count
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.images import mask_files, masks
from bigmodel_jax.data.images.mask_files import Fit
from bigmodel_jax.data.sources.digit_scenes import DigitScenes
from bigmodel_jax.data.sources.source import Source

FORMAT = 1  # raise it when the decoded files change
ABSENT = -1  # the class of an unused place in a row
FLIPPED = np.uint64(63)  # the bit of a row's noise that decides whether the row is mirrored


@dataclasses.dataclass(frozen=True)
class BoxData(DataConfig):
    """Images with bounding boxes, for detection.

    The source gives records with "image" (H, W, 1 or 3) uint8, "boxes" (N, 4): left, top, right and
    bottom in pixels, and "classes" (N,) whole numbers. N is 0 for an image without objects.

    A batch holds image (B, H, W, C) float32 in 0 .. 1; boxes (B, M, 4) float32: centre x, centre y,
    width and height as shares of the image's size; classes (B, M) int32, -1 where a row has fewer
    than M objects; weights (B,) float32.
    """

    required_by: ClassVar = {
        "num_classes": "num_classes",
        "image_shape": "image_size, data.source",
        "num_queries": "max_objects",
    }
    compared: ClassVar = {
        **DataConfig.compared,
        "flip": "training",
        **dict.fromkeys(("fit", "outside"), "prepares"),
        **dict.fromkeys(("image_size", "max_objects"), "shape"),
    }

    source: Source = DigitScenes()
    "where the images come from"
    num_classes: Classes = 11
    "classes are 0 .. num_classes - 1; a record with any other class is bad"
    max_objects: Count = 8
    "the most objects of an image (M); a record with more is bad"
    image_size: tuple[Count, ...] = ()
    "(height, width) to which `fit` brings images of any size; (): all images have one size"
    fit: Fit = "pad"
    """how an image is brought to image_size: crop at the centre, pad on the right and below, or
    stretch"""
    outside: Literal["refuse", "clip"] = "refuse"
    "a box that reaches beyond its image: refuse makes the record bad, clip cuts the box"
    flip: bool = False
    "mirror half of the training images"

    def __post_init__(self):
        if self.image_size and len(self.image_size) != 2:
            raise ValueError(f"data.image_size = {self.image_size}; it must be (height, width), or ()")

    def open(self, split: str) -> "BoxRows":
        folder = decoded_folder(self, split)
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        arrays = [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("image", "boxes", "classes")]
        return BoxRows(*arrays, self.flip, meta)

    def row(self) -> dict[str, Field]:
        boxes, classes = Field((self.max_objects, 4)), Field((self.max_objects,), "int32")
        return {"image": Field(None), "boxes": boxes, "classes": classes} | per_row(["weights"], "float32")

    def requirements(self) -> dict:
        shape = self.open("train").images.shape[1:]
        return {"num_classes": self.num_classes, "image_shape": shape, "num_queries": self.max_objects}

    def save_artifacts(self, folder: Path) -> None:
        masks.write_class_names(self.source, folder)

    def picture(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """Return an image file as evaluation prepares it: (H, W, C) float32 in 0 .. 1."""
        return masks.picture(path, shape, self.fit)

    def class_name(self, label: int) -> str:
        """Return the name of a class, or "class N" where the source has none."""
        return masks.class_name(self.source, label)


@dataclasses.dataclass(frozen=True)
class BoxRows:
    """The rows of one split.

    images (N, H, W, C) uint8; boxes (N, M, 4) float32 as in a batch; classes (N, M) int32.
    """

    images: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    flip: bool
    meta: dict

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        images, boxes = self.images[indices], self.boxes[indices]
        if noise is not None and self.flip:
            turned = (noise >> FLIPPED).astype(bool)
            images[turned] = images[turned, :, ::-1]
            # A mirrored box keeps its size. Only the x coordinate of its centre changes.
            boxes[turned, :, 0] = 1 - boxes[turned, :, 0]
        return {
            "image": images.astype(np.float32) / np.float32(255),
            "boxes": boxes,
            "classes": self.classes[indices],
            "weights": np.ones(len(indices), np.float32),
        }

    def counts(self) -> dict:
        objects = (self.classes != ABSENT).sum(axis=1)
        return {
            "pictures": len(self),
            "pixels high": self.images.shape[1],
            "pixels wide": self.images.shape[2],
            "objects": int(objects.sum()),
            "most objects of a picture": int(objects.max()),
            "pictures without objects": int((objects == 0).sum()),
            "classes present": len(np.unique(self.classes[self.classes != ABSENT])),
            "clipped boxes": self.meta["clipped"],
            "skipped records": len(self.meta["bad_records"]),
        }


# ---------------------------------------------------------------- the cache


def decoded_folder(cfg: BoxData, split: str) -> Path:
    """Return the cache folder with image.npy, boxes.npy, classes.npy and meta.json of a split.

    The folder is filled where it does not exist yet.
    """
    fields = (cfg.num_classes, cfg.max_objects, cfg.image_size, cfg.fit, cfg.outside, cfg.max_bad_records)
    facts = cache.key(cfg.source.fingerprint(split, cfg.root()), *fields)
    name = f"{cfg.source.short_name()}-{split}-{facts}"
    return cache.build(cfg.root() / f"boxes-{FORMAT}" / name, lambda folder: _decode(cfg, split, folder))


def _decode(cfg: BoxData, split: str, folder: Path) -> None:
    """Write a split's usable records into `folder`. Only one is in memory at a time."""
    bad, first, clipped = BadRecords(cfg.max_bad_records), None, 0
    with (
        Column(folder / "image.npy", np.uint8) as images,
        Column(folder / "boxes.npy", np.float32) as boxes,
        Column(folder / "classes.npy", np.int32) as classes,
    ):
        for where, record in cfg.source.records(split, cfg.root(), bad):
            if reason := wrong(cfg, record):
                bad.skip(where, reason)
                continue
            image, corners, cut = brought(cfg, record)
            if first is not None and image.shape != first:
                bad.skip(where, f"shape {image.shape}, but the first has {first}; data.image_size takes any sizes")
                continue
            kept = (corners[:, 2:] > corners[:, :2]).all(axis=1)  # a crop may remove all of a box
            first, clipped = image.shape, clipped + cut
            images.append(image)
            boxes.append(_padded(centred(corners[kept], image.shape), cfg.max_objects, 0))
            classes.append(_padded(_arrays(record)[1][kept].astype(np.int32), cfg.max_objects, ABSENT))
    if not images.rows:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no pictures with boxes")
    meta = {"split": split, "pictures": images.rows, "clipped": clipped, "bad_records": bad.skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def wrong(cfg: BoxData, record: dict[str, Any]) -> str:
    """Return what makes a record unusable, in one line; "" where nothing does."""
    if missing := lacks(record, "image", "boxes", "classes"):
        return missing
    image, (boxes, classes) = np.asarray(record["image"]), _arrays(record)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        return f"its picture is {image.dtype} {image.shape}; it must be uint8, of one or three channels"
    if boxes.shape != (len(classes), 4) or classes.ndim != 1:
        return f"boxes must be (N, 4) and classes (N,), but they are {boxes.shape} and {classes.shape}"
    if len(boxes) > cfg.max_objects:
        return f"{len(boxes)} objects; data.max_objects = {cfg.max_objects} allows no more"
    height, width = image.shape[:2]
    for n, (box, label) in enumerate(zip(boxes.tolist(), classes.tolist(), strict=True)):
        said = f"box {n}, {[round(x, 2) for x in box]} (left, top, right, bottom),"
        if not np.isfinite(box).all():
            return f"{said} is not finite"
        if box[2] <= box[0] or box[3] <= box[1]:
            return f"{said} is inverted or empty: right and bottom must lie beyond left and top"
        inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            return f"{said} lies outside the picture of {width} x {height} pixels"
        if not inside and cfg.outside == "refuse":
            return f"{said} reaches beyond the picture of {width} x {height} pixels; data.outside = 'clip' cuts it"
        if not (label == int(label) and 0 <= label < cfg.num_classes):
            return f"class {label} of box {n} is not listed; classes are 0 .. {cfg.num_classes - 1} (data.num_classes)"
    return ""


def _arrays(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return (boxes, classes). Without objects their shapes are (0, 4) and (0,)."""
    boxes, classes = np.asarray(record["boxes"], np.float64), np.asarray(record["classes"])
    return (boxes.reshape(0, 4) if boxes.size == 0 else boxes), classes


def brought(cfg: BoxData, record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (the image as it is stored, its boxes (N, 4) in pixels, the number of boxes that were
    cut).
    """
    image, (boxes, _) = np.asarray(record["image"]), _arrays(record)
    height, width = image.shape[:2]
    # Boxes are cut at the edges of the image, and then moved with its pixels.
    inside = np.clip(boxes, 0, [width, height, width, height])
    cut = int((inside != boxes).any(axis=1).sum())
    if cfg.image_size:
        scale, offset = placing((height, width), cfg.image_size, cfg.fit)
        image, _ = mask_files.fitted(image, np.zeros((height, width), np.uint8), cfg.image_size, cfg.fit, 0)
        inside = inside * np.tile(scale, 2) + np.tile(offset, 2)
        inside = np.clip(inside, 0, [cfg.image_size[1], cfg.image_size[0]] * 2)
    return image, inside, cut


def placing(shape: tuple[int, int], size: tuple[int, int], fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return the (scale, offset), each (x, y), that `mask_files.fitted` applies to pixels."""
    scale, offset = np.array([size[1] / shape[1], size[0] / shape[0]]), np.zeros(2)
    if fit == "crop":
        scale = np.full(2, scale.max())
        offset = (np.array(size[::-1]) - scale * np.array(shape[::-1])) / 2
    if fit == "pad":
        scale = np.full(2, scale.min())
    return scale, offset


def centred(corners: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert corners (N, 4) in pixels to centre, width and height relative to the image."""
    corners = corners / [shape[1], shape[0], shape[1], shape[0]]
    return np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)


def _padded(values: np.ndarray, num: int, value: int) -> np.ndarray:
    more = [(0, num - len(values)), *[(0, 0)] * (values.ndim - 1)]
    return np.pad(values, more, constant_values=value)
