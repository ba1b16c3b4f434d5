"""Images or feature rows with one label each. Images are decoded once, or again for every batch."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Count, CountOrZero, Positive, ShareAboveZero
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.images import channels, encoded, pictures, threads
from bigmodel_jax.data.images.augment import Augmentation
from bigmodel_jax.data.images.channels import Channels
from bigmodel_jax.data.images.image_rows import FileRows, ImageRows, LabelledRows
from bigmodel_jax.data.images.mix import Mix
from bigmodel_jax.data.images.processor import processor
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Tfds

FORMAT = 1  # raise it when the decoded files change
SCALING = "scaling.json"  # in a run's folder: mean and spread of its training images


@dataclasses.dataclass(frozen=True)
class ImageData(DataConfig):
    """Examples with one label each, for classification.

    A batch holds image (B, H, W, C) float32, label (B,) int32 and weights (B,) float32. uint8
    images are divided by 255. Other values stay as they are. Rows of features (a CSV file) come as
    "image" (B, features). Where `mix` is set, a training batch also holds soft_label (B, classes)
    float32, and label is the class with the larger share.
    """

    required_by: ClassVar = {"num_classes": "num_classes", "image_shape": "image_size, data.source"}
    compared: ClassVar = {
        **DataConfig.compared,
        **dict.fromkeys(("max_shift", "augment", "mix"), "training"),
        **dict.fromkeys(("eval_crop", "normalise", "mean", "spread"), "prepares"),
        "image_size": "shape",
    }

    source: Source = Tfds("mnist_5k")
    "where the examples come from"
    num_classes: Count = 10
    "labels are 0 .. num_classes - 1; a record with any other label is bad"
    max_shift: CountOrZero = 0
    "training images shift by up to this many pixels each way; the uncovered edge becomes black"
    image_size: CountOrZero = 0
    """side in pixels; images of any size stay files that each batch decodes; 0: all have one size,
    decoded once"""
    eval_crop: ShareAboveZero = 0.875
    "with image_size: side of evaluation's centred square, as a share of the shorter side"
    augment: tuple[Augmentation, ...] = ()
    "augmentations of training images, applied in order (data/images/augment.py, rand_augment.py)"
    mix: tuple[Mix, ...] = ()
    "Mixup, CutMix: each training example draws one of these"
    normalise: Literal["none", "train", "given"] = "none"
    "train: mean 0, spread 1 per channel over the training split; given: `mean` and `spread`"
    mean: tuple[float, ...] = ()
    spread: tuple[Positive, ...] = ()
    "the given mean and standard deviation, one number for all channels or one for each"

    def __post_init__(self):
        if self.num_classes < 2:
            raise ValueError(f"data.num_classes = {self.num_classes}; it must be at least 2")
        if self.max_shift < 0:
            raise ValueError(f"data.max_shift = {self.max_shift}; it must be 0 or more")
        given = self.normalise == "given"
        if len(self.mean) != len(self.spread) or bool(self.mean) != given:
            raise ValueError(
                f"data.mean = {self.mean!r}, data.spread = {self.spread!r}; each must have a number for every "
                f"channel with data.normalise = 'given', and none otherwise; it is {self.normalise!r}"
            )

    def open(self, split: str) -> LabelledRows:
        rows = open_files(self, split) if self.image_size else open_decoded(self, split)
        log_skipped(split, rows.meta["bad_records"])
        return dataclasses.replace(rows, channels=fitted(self))

    def row(self) -> dict[str, Field]:
        shape = (self.image_size, self.image_size, 3) if self.image_size else None
        row = {"image": Field(shape)} | per_row(["label"]) | per_row(["weights"], "float32")
        return row | ({"soft_label": Field((self.num_classes,), training=True)} if self.mix else {})

    def label_column(self) -> str:
        return "label"

    def record_form(self) -> Literal["records", "encoded"]:
        return "encoded" if self.image_size else "records"

    def requirements(self) -> dict:
        return {"num_classes": self.num_classes, "image_shape": image_shape(self)}

    def of_run(self, folder: Path) -> "ImageData":
        if self.normalise != "train" or not (folder / SCALING).is_file():
            return self
        found = json.loads((folder / SCALING).read_text())["image"]
        return dataclasses.replace(self, normalise="given", mean=tuple(found["mean"]), spread=tuple(found["scale"]))

    def processor(self, run_dir: Path) -> dict[str, Any]:
        return processor(self.image_size, self.eval_crop, fitted(self.of_run(run_dir))) if self.image_size else {}

    def save_artifacts(self, folder: Path) -> None:
        """Write vocabulary.json, the class names in order, and scaling.json, mean and spread."""
        if labels := self.source.labels():
            files.replace(
                folder / "vocabulary.json", json.dumps({"labels": labels}, ensure_ascii=False, indent=0) + "\n"
            )
        if self.normalise != "none":
            files.replace(folder / SCALING, json.dumps({"image": fitted(self).to_json()}, indent=1) + "\n")

    def sheet(self, first):
        if not (self.max_shift or self.augment or self.mix):
            return None
        batch = first()
        drawn = batch["image"].ndim == 4 and batch["image"].shape[-1] in (1, 3)
        return (self.shown(batch["image"]), self.titles(batch)) if drawn else None

    def shown(self, images: np.ndarray) -> np.ndarray:
        """Return a batch's images in 0 .. 1. Rows of features are returned unchanged."""
        return fitted(self).shown(images) if images.ndim == 4 else images

    def picture(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        if self.image_size:
            found = pictures.view(path.read_bytes(), path, self.image_size, pictures.centre(self.eval_crop))
        else:
            found = pictures.fitted(pictures.read(path), shape)
        return fitted(self).floats(found)

    def blank(self, shape: tuple[int, ...]) -> np.ndarray:
        return fitted(self).floats(np.zeros(shape, np.uint8))

    def titles(self, batch: dict[str, np.ndarray]) -> list[str]:
        """Return each image's class; for mixed images, the classes with their shares."""
        if "soft_label" not in batch:
            return [self.class_name(label) for label in batch["label"]]
        found = []
        for shares in batch["soft_label"]:
            most = np.argsort(-shares, kind="stable")[:2]
            parts = [f"{self.class_name(label)} {shares[label]:.2f}" for label in most if shares[label] >= 0.005]
            found.append(" + ".join(parts) if len(parts) > 1 else self.class_name(most[0]))
        return found

    def conditions(self, num: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return the classes in turn as conditions of generated images."""
        labels = np.arange(num, dtype=np.int32) % self.num_classes
        return {"label": labels}, [self.class_name(label) for label in labels]

    def class_name(self, label: int) -> str:
        names = self.source.labels()
        return names[label] if names else f"class {label}"


def image_shape(cfg: ImageData) -> tuple[int, ...]:
    """Return the shape of one example: (H, W, C), or (features,)."""
    if cfg.image_size:
        return (cfg.image_size, cfg.image_size, 3)
    return open_decoded(cfg, "train").images.shape[1:]


# ---------------------------------------------------------------- mean and spread


def fitted(cfg: ImageData) -> Channels:
    """Return the normalization of batches.

    "train" computes it on the training split alone, and keeps it in the cache.
    """
    if cfg.normalise == "none":
        return Channels()
    if cfg.normalise == "given":
        channels_ = image_shape(cfg)[-1]
        if len(cfg.mean) not in (1, channels_):
            raise ValueError(f"data.mean: {len(cfg.mean)} numbers are given, and images have {channels_} channels")
        return Channels(cfg.mean, cfg.spread)
    folder = encoded_folder(cfg, "train") if cfg.image_size else decoded_folder(cfg, "train")
    name = cache.key(folder.name, cfg.image_size, cfg.eval_crop)
    kept = cache.build(cfg.root() / f"image-mean-{FORMAT}" / name, lambda to: _fit(cfg, to))
    found = json.loads((kept / SCALING).read_text())
    return Channels(tuple(found["mean"]), tuple(found["scale"]))


def _fit(cfg: ImageData, folder: Path) -> None:
    if cfg.image_size:  # images are prepared as in evaluation
        rows = open_files(cfg, "train")
        one = lambda row: channels.histogram(rows.view(row, None))  # noqa: E731
        found = channels.of_bytes(threads.in_order(one, range(len(rows))))
    else:
        images = open_decoded(cfg, "train").images
        parts = (part if part.ndim in (2, 4) else part[..., None] for part in channels.chunks(images))
        found = (
            channels.of_bytes(map(channels.histogram, parts)) if images.dtype == np.uint8 else channels.of_floats(parts)
        )
    (folder / SCALING).write_text(json.dumps(found.to_json(), indent=1))


# ---------------------------------------------------------------- pictures as files


def open_files(cfg: ImageData, split: str) -> FileRows:
    """Return the rows of a split whose images are decoded by every batch."""
    found = encoded.load(encoded_folder(cfg, split))
    changes = (cfg.max_shift, found.meta, cfg.augment, cfg.mix, cfg.num_classes, Channels())
    return FileRows(found, found.label, *changes, cfg.image_size, cfg.eval_crop)


def encoded_folder(cfg: ImageData, split: str) -> Path:
    """Return the cache folder with a split's files or their paths. Fill it where it is missing."""
    place = str(Path(str(getattr(cfg.source, split, ""))).absolute())  # part of the key, because paths are stored
    facts = cache.key(cfg.source.fingerprint(split, cfg.root()), place, cfg.num_classes, cfg.max_bad_records)
    name = f"{cfg.source.short_name()}-{split}-{facts}"

    def write(folder: Path) -> None:
        bad = BadRecords(cfg.max_bad_records)
        records = cfg.source.encoded(split, cfg.root(), bad)
        if not encoded.write(folder, split, records, lambda record: _lacking(record, "image", cfg.num_classes), bad):
            raise ValueError(f"data.source: the {split} split of {cfg.source} has no examples")

    return cache.build(cfg.root() / f"image-files-{encoded.FORMAT}" / name, write)


# ---------------------------------------------------------------- decoded once


def open_decoded(cfg: ImageData, split: str) -> ImageRows:
    """Return the rows of a split that is decoded once."""
    folder = decoded_folder(cfg, split)
    images = np.asarray(np.load(folder / "image.npy", mmap_mode="r"))
    shape = images.shape[1:]
    for name in ("max_shift", "augment", "mix"):
        if getattr(cfg, name) and len(shape) != 3:
            raise ValueError(f"data.{name}: {getattr(cfg, name)} needs images, but records have shape {shape}")
    if cfg.augment and (images.dtype != np.uint8 or shape[-1] not in (1, 3)):
        raise ValueError(f"data.augment needs uint8 images of 1 or 3 channels; records are {images.dtype} {shape}")
    meta = json.loads((folder / "meta.json").read_text())
    return ImageRows(images, np.load(folder / "label.npy"), cfg.max_shift, meta, cfg.augment, cfg.mix, cfg.num_classes)


def decoded_folder(cfg: ImageData, split: str) -> Path:
    """Return the cache folder with image.npy, label.npy and meta.json. Fill it if missing."""
    facts = cache.key(cfg.source.fingerprint(split, cfg.root()), cfg.num_classes, cfg.max_bad_records)
    name = f"{cfg.source.short_name()}-{split}-{facts}"
    return cache.build(cfg.root() / f"image-{FORMAT}" / name, lambda folder: _decode(cfg, split, folder))


def _decode(cfg: ImageData, split: str, folder: Path) -> None:
    """Write a split's usable records into `folder`."""
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
    """Return an example as it is stored: uint8, or else float32 as in a batch."""
    image = np.asarray(record.get("image", record.get("features", ())))
    if image.dtype == np.uint8 or image.dtype.kind not in "biuf":
        return image
    with np.errstate(over="ignore"):  # a value that becomes infinite makes a bad record
        return image.astype(np.float32)


def _wrong(record: dict[str, Any], image: np.ndarray, first: np.ndarray, num_classes: int) -> str:
    """Return what makes an example unusable; "" where nothing does."""
    name = "features" if "features" in record else "image"
    if missing := lacks(record, name, "label"):
        return missing
    if image.dtype.kind not in "biuf":
        return f"{image.dtype} values, which are no numbers"
    if image.size == 0:
        return "no image or features"
    if image.dtype != first.dtype:
        return f"{image.dtype} values, but the first example has {first.dtype}"
    if image.shape != first.shape:
        other = "" if name == "features" else "; data.image_size takes pictures of any sizes"
        return f"shape {image.shape}, but the first example has {first.shape}{other}"
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        return "a value that is not finite"
    return _lacking(record, name, num_classes)


def _lacking(record: dict[str, Any], name: str, num_classes: int) -> str:
    """Return which field a record lacks, or what is wrong with its label; "" where nothing is."""
    if missing := lacks(record, name, "label"):
        return missing
    label = record["label"]
    if isinstance(label, str) or label is None or int(label) != label:
        return f"label {label!r} is not a whole number"
    return "" if 0 <= label < num_classes else f"label {label} is not in 0 .. {num_classes - 1} (data.num_classes)"
