"""Labelled images, or rows of numbers: decoded once into the cache, memory-mapped, batched by indexing."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count, CountOrZero
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.sources.sources import Source, Tfds

FORMAT = 1  # raise it when the files below change


@dataclasses.dataclass(frozen=True)
class ImageData(DataConfig):
    """Examples with one label each, for classification.

    Batch: image (B, H, W, C) float32, label (B,) int32, weights (B,) float32. uint8 images come as value / 255, anything
    else as it is; rows of features (a CSV file) come as "image" (B, features).
    """

    required_by: ClassVar = {"num_classes": "num_classes", "image_shape": "source"}
    compared: ClassVar = DataConfig.compared | {"max_shift": "training"}

    source: Source = Tfds("mnist_5k")
    num_classes: Count = 10
    "labels are 0 .. num_classes - 1; any other is a bad record"
    max_shift: CountOrZero = 0
    "in training, images are moved by up to so many pixels each way, black coming in at the edge"

    def __post_init__(self):
        if self.num_classes < 2:
            raise ValueError(f"data.num_classes: {self.num_classes}; at least 2")
        if self.max_shift < 0:
            raise ValueError(f"data.max_shift: {self.max_shift}; 0 or more pixels")

    def open(self, split: str) -> "ImageRows":
        folder = decoded_folder(self, split)
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        images = np.load(folder / "image.npy", mmap_mode="r")
        if self.max_shift and images.ndim != 4:
            raise ValueError(
                f"data.max_shift: {self.max_shift} needs images, but records have shape {images.shape[1:]}"
            )
        return ImageRows(np.asarray(images), np.load(folder / "label.npy"), self.max_shift, meta)

    def row(self) -> dict[str, Field]:
        return {"image": Field(None)} | per_row(["label"]) | per_row(["weights"], "float32")

    def requirements(self) -> dict:
        return {"num_classes": self.num_classes, "image_shape": image_shape(self)}

    def save_artifacts(self, folder: Path) -> None:
        """vocabulary.json: the names of the classes, in the order of their numbers."""
        if labels := self.source.labels():
            files.replace(
                folder / "vocabulary.json", json.dumps({"labels": labels}, ensure_ascii=False, indent=0) + "\n"
            )

    def conditions(self, num: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """The classes in turn."""
        labels = np.arange(num, dtype=np.int32) % self.num_classes
        names = self.source.labels()
        return {"label": labels}, [names[label] if names else f"class {label}" for label in labels]


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """One split. images (N, ...) as stored, labels (N,) int32; meta: counts and what was skipped."""

    shown_as: ClassVar[str] = "images"  # how the `data` verb shows them

    images: np.ndarray
    labels: np.ndarray
    max_shift: int
    meta: dict

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        images = self.images[indices]
        if noise is not None and self.max_shift:
            images = shift(images, noise, self.max_shift)
        scale = np.float32(255 if images.dtype == np.uint8 else 1)
        ones = np.ones(len(indices), np.float32)
        return {"image": images.astype(np.float32) / scale, "label": self.labels[indices], "weights": ones}

    def counts(self) -> dict:
        return {
            "examples": len(self),
            "classes present": len(np.unique(self.labels)),
            "values, smallest": float(self.images.min()),
            "values, mean": float(self.images.mean()),
            "values, largest": float(self.images.max()),
            "skipped records": len(self.meta["bad_records"]),
        }


def shift(images: np.ndarray, noise: np.ndarray, most: int) -> np.ndarray:
    """Each image (B, H, W, C) moved by -most .. most pixels down and right, chosen by its uint64 of noise."""
    size, height, width = images.shape[:3]
    span = np.uint64(2 * most + 1)
    down, right = (noise % span).astype(int), (noise // span % span).astype(int)
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    rows, columns = down[:, None] + np.arange(height), right[:, None] + np.arange(width)
    return padded[np.arange(size)[:, None, None], rows[:, :, None], columns[:, None, :]]


def image_shape(cfg: ImageData) -> tuple[int, ...]:
    """Shape of one example: (H, W, C), or (features,)."""
    return cfg.open("train").images.shape[1:]


def decoded_folder(cfg: ImageData, split: str) -> Path:
    """The cache folder with image.npy, label.npy and meta.json of a split, made at first."""
    facts = cache.key(cfg.source.fingerprint(split, cfg.root()), cfg.num_classes, cfg.max_bad_records)
    name = f"{cfg.source.short_name()}-{split}-{facts}"
    return cache.build(cfg.root() / f"image-{FORMAT}" / name, lambda folder: _decode(cfg, split, folder))


def _decode(cfg: ImageData, split: str, folder: Path) -> None:
    """Reads a split's usable records into `folder`."""
    bad, first = BadRecords(cfg.max_bad_records), None
    with Column(folder / "image.npy") as images, Column(folder / "label.npy", np.int32) as labels:
        for where, record in cfg.source.records(split, cfg.root(), bad):
            image = _values(record)
            reason = _wrong(record, image, image if first is None else first, cfg.num_classes)
            if reason:
                bad.skip(where, reason)
                continue
            first = image if first is None else first
            images.append(image)
            labels.append(int(record["label"]))
    if not labels.rows:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no examples")
    meta = {"split": split, "examples": labels.rows, "bad_records": bad.skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _values(record: dict[str, Any]) -> np.ndarray:
    """An example as it is stored: bytes, or else float32, as a batch holds it."""
    image = np.asarray(record.get("image", record.get("features", ())))
    if image.dtype == np.uint8 or image.dtype.kind not in "biuf":
        return image
    with np.errstate(over="ignore"):  # what becomes infinite is a bad record
        return image.astype(np.float32)


def _wrong(record: dict[str, Any], image: np.ndarray, first: np.ndarray, num_classes: int) -> str:
    """What makes an example unusable, or nothing."""
    if missing := lacks(record, "features" if "features" in record else "image", "label"):
        return missing
    label = record["label"]
    if image.dtype.kind not in "biuf":
        return f"{image.dtype} values, which are no numbers"
    if image.size == 0:
        return "no image or features"
    if image.dtype != first.dtype:
        return f"{image.dtype} values, but the first example has {first.dtype}"
    if image.shape != first.shape:
        return f"shape {image.shape}, but the first example has {first.shape}"
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        return "a value that is not finite"
    if isinstance(label, str) or label is None or int(label) != label:
        return f"label {label!r} is not a whole number"
    return "" if 0 <= label < num_classes else f"label {label} is not in 0 .. {num_classes - 1} (data.num_classes)"
