"""Rows of labelled images: decoded in the cache, or decoded from their files by every batch; changed and mixed in training."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from bigmodel_jax.data.images import augment, pictures, threads
from bigmodel_jax.data.images.augment import Augmentation
from bigmodel_jax.data.images.channels import Channels
from bigmodel_jax.data.images.encoded import Encoded
from bigmodel_jax.data.images.mix import Mix, mixed

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """What both kinds of rows share. labels (N,) int32; meta: counts and what was skipped."""

    shown_as: ClassVar[str] = "images"  # how the `data` verb shows them

    images: Any
    labels: np.ndarray
    max_shift: int
    meta: dict
    augment: tuple[Augmentation, ...] = ()
    mixes: tuple[Mix, ...] = ()
    num_classes: int = 0
    channels: Channels = Channels()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, noise: np.ndarray | None) -> Batch:
        labels = self.labels[indices]
        out = {"image": self.pixels(indices, noise), "label": labels, "weights": np.ones(len(indices), np.float32)}
        if noise is not None and self.mixes:
            out["soft_label"] = (labels[:, None] == np.arange(self.num_classes)).astype(np.float32)
        return out

    def pixels(self, indices: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """The images (B, ...) float32, without those that mixing adds."""
        raise NotImplementedError(f"{type(self).__name__} does not define pixels()")

    def mix(self, batch: Batch, noise: np.ndarray) -> Batch:
        """A training batch of whole pairs (data/images/mix.py), mixed; noise: as it was made with."""
        return mixed(self.mixes, batch, np.array([augment.noise_of(bits, -2) for bits in noise.tolist()], np.uint64))

    @property
    def changes(self) -> bool:
        """Whether training sees the images otherwise than evaluation does."""
        return bool(self.max_shift or self.augment or self.mixes)


@dataclasses.dataclass(frozen=True)
class ImageRows(LabelledRows):
    """One split, decoded. images (N, ...) as stored: uint8, or float32."""

    def pixels(self, indices, noise):
        images = self.images[indices]
        if noise is not None and self.augment:
            images = np.array(images)  # rows are overwritten below

            def change(row: int) -> None:
                images[row] = augment.augmented(self.augment, images[row], int(noise[row]))

            threads.each(change, len(images))
        if noise is not None and self.max_shift:
            images = shift(images, noise, self.max_shift)
        return self.channels.floats(images)

    def counts(self) -> dict:
        return {
            "examples": len(self),
            "classes present": len(np.unique(self.labels)),
            "values, smallest": float(self.images.min()),
            "values, mean": float(self.images.mean()),
            "values, largest": float(self.images.max()),
            "skipped records": len(self.meta["bad_records"]),
        }


@dataclasses.dataclass(frozen=True)
class FileRows(LabelledRows):
    """One split, as picture files: a batch decodes its own, each to (size, size, 3). crop: the share of the shorter side
    that evaluation sees, and training where its changes do not begin with a part of their own."""

    images: Encoded
    size: int = 0
    crop: float = 1.0

    def pixels(self, indices, noise):
        out = np.empty((len(indices), self.size, self.size, 3), np.float32)

        def fill(row: int) -> None:
            image = self.view(int(indices[row]), None if noise is None else int(noise[row]))
            out[row] = self.channels.floats(image)

        threads.each(fill, len(indices))
        return out

    def view(self, row: int, noise: int | None) -> np.ndarray:
        """(size, size, 3) uint8 of one picture, as evaluation sees it, or training with these random bits."""
        content, name = self.images.content(row)
        if noise is None:
            return pictures.view(content, name, self.size, pictures.centre(self.crop), gap=2)
        own = bool(self.augment) and hasattr(self.augment[0], "box")
        box = pictures.centre(self.crop)
        if own:
            box = lambda width, height: self.augment[0].box(width, height, augment.noise_of(noise, 0))  # noqa: E731
        image = pictures.view(content, name, self.size, box)
        image = augment.augmented(self.augment, image, noise, first=int(own))
        return shift(image[None], np.array([noise], np.uint64), self.max_shift)[0] if self.max_shift else image

    def counts(self) -> dict:
        size = self.images.size
        longer, shorter = size.max(axis=1), size.min(axis=1)
        return {
            "examples": len(self),
            "classes present": len(np.unique(self.labels)),
            "shorter side, smallest": int(shorter.min()),
            "shorter side, median": float(np.median(shorter)),
            "longer side, largest": int(longer.max()),
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
