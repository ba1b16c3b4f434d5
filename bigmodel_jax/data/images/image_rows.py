"""Rows of labelled images: decoded in the cache, or decoded from their files by every batch."""

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
    """The base class of both kinds of rows; labels (N,) int32; meta: the contents of meta.json."""

    shown_as: ClassVar[str] = "images"  # how the `data` verb displays the rows

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
        # The labels are one-hot here. `mix` replaces them by shares of two classes.
        if noise is not None and self.mixes:
            out["soft_label"] = (labels[:, None] == np.arange(self.num_classes)).astype(np.float32)
        return out

    def pixels(self, indices: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Return the images (B, ...) float32, augmented but not mixed."""
        raise NotImplementedError(f"{type(self).__name__} does not define pixels()")

    def mix(self, batch: Batch, noise: np.ndarray) -> Batch:
        """Mix a training batch that consists of whole pairs (data/images/mix.py).

        `noise` is the noise with which the batch was made.
        """
        # -2 is no place of the list of augmentations, so a mix has random bits of its own.
        return mixed(self.mixes, batch, np.array([augment.noise_of(bits, -2) for bits in noise.tolist()], np.uint64))

    @property
    def changes(self) -> bool:
        """Whether training images differ from evaluation images."""
        return bool(self.max_shift or self.augment or self.mixes)


@dataclasses.dataclass(frozen=True)
class ImageRows(LabelledRows):
    """One split, decoded; images (N, ...) are stored as uint8 or float32."""

    def pixels(self, indices, noise):
        images = self.images[indices]
        if noise is not None and self.augment:
            images = np.array(images)  # a copy, because its rows are overwritten below

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
    """One split as image files; a batch decodes its own images to (size, size, 3).

    `crop` is the side of the square that evaluation sees, as a share of the image's shorter side.
    Training sees the same square, unless its first augmentation cuts out a rectangle of its own.
    """

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
        """Return one image (size, size, 3) uint8; `noise`: training's random bits, or None."""
        content, name = self.images.content(row)
        if noise is None:
            return pictures.view(content, name, self.size, pictures.centre(self.crop), gap=2)
        # An augmentation with a method `box` crops the file itself, at its full resolution.
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
    """Shift each image (B, H, W, C) by -most .. most pixels both ways, as its uint64 of noise says.

    The uncovered edge becomes 0.
    """
    size, height, width = images.shape[:3]
    span = np.uint64(2 * most + 1)
    down, right = (noise % span).astype(int), (noise // span % span).astype(int)
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    # Each image takes its own window of the padded array, in one indexing operation.
    rows, columns = down[:, None] + np.arange(height), right[:, None] + np.arange(width)
    return padded[np.arange(size)[:, None, None], rows[:, :, None], columns[:, None, :]]
