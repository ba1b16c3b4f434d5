"""Images with a class for each pixel, resized and decoded once into the cache."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.core.ranges import Classes, Count, CountOrZero
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords, DataConfig, lacks, log_skipped
from bigmodel_jax.data.columns import Column
from bigmodel_jax.data.fields import Field, per_row
from bigmodel_jax.data.images import mask_files, pictures
from bigmodel_jax.data.images.image_rows import shift
from bigmodel_jax.data.images.mask_files import Fit
from bigmodel_jax.data.sources.digit_scenes import DigitScenes
from bigmodel_jax.data.sources.source import Source

FORMAT = 1  # raise it when the decoded files change
FLIPPED = np.uint64(63)  # the bit of a row's noise that decides whether the row is mirrored


@dataclasses.dataclass(frozen=True)
class MaskData(DataConfig):
    """Images with masks, for semantic segmentation.

    The source gives records with "image" (H, W, 1 or 3) uint8 and "mask" (H, W), whole numbers. A
    batch holds image (B, H, W, C) float32 in 0 .. 1, mask (B, H, W) int32 and weights (B,) float32.
    """

    required_by: ClassVar = {"num_classes": "num_classes", "image_shape": "image_size, data.source"}
    compared: ClassVar = {
        **DataConfig.compared,
        **dict.fromkeys(("max_shift", "flip"), "training"),
        **dict.fromkeys(("fit", "ignore_label"), "prepares"),
        "image_size": "shape",
    }

    source: Source = DigitScenes()
    "where the images come from"
    num_classes: Classes = 11
    "labels are 0 .. num_classes - 1 and `ignore_label`; a record with any other label is bad"
    ignore_label: CountOrZero = 255
    "the label of pixels that count neither in the loss nor in metrics"
    image_size: tuple[Count, ...] = ()
    "(height, width) to which `fit` brings images of any size; (): all images have one size"
    fit: Fit = "crop"
    """how an image is brought to image_size: crop at the centre, pad on the right and below, or
    stretch"""
    max_shift: CountOrZero = 0
    "training images are shifted by up to this many pixels each way; the uncovered edge is ignored"
    flip: bool = False
    "mirror half of the training images and their masks"

    def __post_init__(self):
        if self.image_size and len(self.image_size) != 2:
            raise ValueError(f"data.image_size = {self.image_size}; it must be (height, width), or ()")
        if self.ignore_label > 255:
            raise ValueError(f"data.ignore_label = {self.ignore_label}; it must be at most 255")
        if self.num_classes > 255:
            raise ValueError(f"data.num_classes = {self.num_classes}; it must be at most 255, as masks are bytes")

    def open(self, split: str) -> "MaskRows":
        folder = decoded_folder(self, split)
        meta = json.loads((folder / "meta.json").read_text())
        log_skipped(split, meta["bad_records"])
        arrays = [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("image", "mask")]
        return MaskRows(*arrays, self.max_shift, self.flip, self.ignore_label, self.num_classes, meta)

    def row(self) -> dict[str, Field]:
        mask = Field(self.image_size or None, "int32")
        return {"image": Field(None), "mask": mask} | per_row(["weights"], "float32")

    def requirements(self) -> dict:
        return {"num_classes": self.num_classes, "image_shape": self.open("train").images.shape[1:]}

    def save_artifacts(self, folder: Path) -> None:
        write_class_names(self.source, folder)

    def picture(self, path: Path, shape: tuple[int, ...]) -> np.ndarray:
        """Return an image file as evaluation prepares it: (H, W, C) float32 in 0 .. 1."""
        return picture(path, shape, self.fit)

    def class_name(self, label: int) -> str:
        return class_name(self.source, label)


def write_class_names(source: Source, folder: Path) -> None:
    """Write vocabulary.json, the class names in order.

    It writes nothing where the source has no names.
    """
    if labels := source.labels():
        text = json.dumps({"labels": labels}, ensure_ascii=False, indent=0)
        files.replace(folder / "vocabulary.json", text + "\n")


def class_name(source: Source, label: int) -> str:
    """Return the name of a class, or "class N" where the source has none."""
    names = source.labels()
    return names[label] if label < len(names) else f"class {label}"


def picture(path: Path, shape: tuple[int, ...], fit: Fit) -> np.ndarray:
    """Return an image file as evaluation prepares it: (H, W, C) float32 in 0 .. 1."""
    image = pictures.read(path)
    image, _ = mask_files.fitted(image, np.zeros(image.shape[:2], np.uint8), tuple(shape[:2]), fit, 0)
    return pictures.fitted(image, shape).astype(np.float32) / np.float32(255)


@dataclasses.dataclass(frozen=True)
class MaskRows:
    """One split: images (N, H, W, C) and masks (N, H, W), both uint8, and meta.json's contents."""

    images: np.ndarray
    masks: np.ndarray
    max_shift: int
    flip: bool
    ignore_label: int
    num_classes: int
    meta: dict

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> dict[str, np.ndarray]:
        images, masks = self.images[indices], self.masks[indices].astype(np.int32)
        if noise is not None and self.max_shift:
            images = shift(images, noise, self.max_shift)
            beside = masks[..., None] - self.ignore_label  # `shift` fills in zeros, which must mean "ignore"
            masks = shift(beside, noise, self.max_shift)[..., 0] + self.ignore_label
        if noise is not None and self.flip:
            # `shift` reads the noise modulo small numbers, which its highest bit hardly changes.
            turned = (noise >> FLIPPED).astype(bool)
            images[turned], masks[turned] = images[turned, :, ::-1], masks[turned, :, ::-1]
        return {
            "image": images.astype(np.float32) / np.float32(255),
            "mask": masks,
            "weights": np.ones(len(indices), np.float32),
        }

    def counts(self) -> dict:
        # Each of the 256 values of a byte has a bin, so that `ignore_label` is always a valid
        # index.
        pixels = np.bincount(self.masks.reshape(-1), minlength=256)
        return {
            "pictures": len(self),
            "pixels high": self.images.shape[1],
            "pixels wide": self.images.shape[2],
            "classes present": int((pixels[: self.num_classes] > 0).sum()),
            "share of the largest class": float(pixels[: self.num_classes].max() / max(pixels.sum(), 1)),
            "share of ignored pixels": float(pixels[self.ignore_label] / max(pixels.sum(), 1)),
            "skipped records": len(self.meta["bad_records"]),
        }


# ---------------------------------------------------------------- the cache


def decoded_folder(cfg: MaskData, split: str) -> Path:
    """Return the cache folder with image.npy, mask.npy and meta.json. Fill it if missing."""
    prepared = (cfg.num_classes, cfg.ignore_label, cfg.image_size, cfg.fit, cfg.max_bad_records)
    facts = cache.key(cfg.source.fingerprint(split, cfg.root()), *prepared)
    name = f"{cfg.source.short_name()}-{split}-{facts}"
    return cache.build(cfg.root() / f"masks-{FORMAT}" / name, lambda folder: _decode(cfg, split, folder))


def _decode(cfg: MaskData, split: str, folder: Path) -> None:
    """Write a split's usable records into `folder`. Only one is in memory at a time."""
    bad, first = BadRecords(cfg.max_bad_records), None
    with Column(folder / "image.npy", np.uint8) as images, Column(folder / "mask.npy", np.uint8) as masks:
        for where, record in cfg.source.records(split, cfg.root(), bad):
            image, mask, reason = _pair(cfg, record, first)
            if reason:
                bad.skip(where, reason)
                continue
            first = image.shape
            images.append(image)
            masks.append(mask)
    if not images.rows:
        raise ValueError(f"data.source: the {split} split of {cfg.source} has no pictures with masks")
    meta = {"split": split, "pictures": images.rows, "bad_records": bad.skipped}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _pair(cfg: MaskData, record: dict[str, Any], first: tuple | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Return (image, mask, "") as they are stored, or (image, mask, what makes them unusable)."""
    if missing := lacks(record, "image", "mask"):
        return np.zeros(0), np.zeros(0), missing
    image, mask = np.asarray(record["image"]), np.asarray(record["mask"])
    reason = _wrong(cfg, image, mask)
    if reason:
        return image, mask, reason
    mask = mask.astype(np.uint8)
    if cfg.image_size:
        image, mask = mask_files.fitted(image, mask, cfg.image_size, cfg.fit, cfg.ignore_label)
    if first is not None and image.shape != first:
        reason = f"shape {image.shape}, but the first has {first}; data.image_size takes pictures of any sizes"
    return image, mask, reason


def _wrong(cfg: MaskData, image: np.ndarray, mask: np.ndarray) -> str:
    """Return what makes an image or its mask unusable; "" where nothing does."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        return f"its picture is {image.dtype} {image.shape}; it must be uint8, of one or three channels"
    if mask.dtype.kind not in "biu" or mask.ndim != 2:
        return f"no mask of whole numbers (height, width), but {mask.dtype} {mask.shape}"
    if mask.shape != image.shape[:2]:
        return f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, and its picture {image.shape[1]} x {image.shape[0]}"
    listed = (mask >= 0) & (mask < cfg.num_classes) | (mask == cfg.ignore_label)
    if listed.all():
        return ""
    row, column = np.argwhere(~listed)[0]
    return (
        f"label {mask[row, column]} at row {row}, column {column} of the mask is neither in 0 .. {cfg.num_classes - 1} "
        f"(data.num_classes) nor {cfg.ignore_label} (data.ignore_label)"
    )
