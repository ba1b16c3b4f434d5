"""Mixup and CutMix: training examples 2k and 2k + 1 are mixed with each other.

Pairs are formed by the number of the example and not by its place in a batch. So a batch depends
only on its number, whatever the number of processes is, and no image is decoded twice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_jax.core.ranges import Positive, Share
from bigmodel_jax.data.images import threads
from bigmodel_jax.data.images.draws import Draws

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Mix:
    """The base class of ways to mix two examples."""

    share: Share = 1.0
    "share of the examples drawn for this way that are really mixed"

    def __call__(self, image: np.ndarray, other: np.ndarray, draws: Draws) -> tuple[np.ndarray, float]:
        """Return (a new image, the share of `image` in it) of two images (H, W, C) float32."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__()")


@dataclasses.dataclass(frozen=True)
class Mixup(Mix):
    """Mixup (arXiv:1710.09412) mixes two images: l x + (1 - l) x', l from Beta(alpha, alpha)."""

    alpha: Positive = 0.2
    "parameter of the Beta distribution"

    def __call__(self, image, other, draws):
        share = draws.beta(self.alpha)
        return np.float32(share) * image + np.float32(1 - share) * other, share


@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """Copies a rectangle of one image into the other (Yun et al. 2019, arXiv:1905.04899).

    The rectangle has the share 1 - l of the area, with l from Beta(alpha, alpha), and its centre
    may lie anywhere. The label's share is the share of pixels that are left.
    """

    alpha: Positive = 1.0
    "parameter of the Beta distribution"

    def __call__(self, image, other, draws):
        height, width = image.shape[:2]
        # A rectangle whose sides are this share of the image has the area 1 - l.
        side = np.sqrt(1 - draws.beta(self.alpha))
        down, right = draws.below(height), draws.below(width)
        half = int(height * side) / 2, int(width * side) / 2
        rows = slice(max(int(down - half[0]), 0), max(int(down + half[0]), 0))
        columns = slice(max(int(right - half[1]), 0), max(int(right + half[1]), 0))
        image = image.copy()
        image[rows, columns] = other[rows, columns]
        return image, 1 - other[rows, columns, 0].size / (height * width)


def mixed(mixes: Sequence[Mix], batch: Batch, noise: np.ndarray) -> Batch:
    """Return a batch whose rows 2k and 2k + 1 are mixed with each other.

    The batch holds image (B, H, W, C), soft_label (B, classes) and label (B,), which becomes the
    class with the larger share. Each row draws one of `mixes` with equal probability, by its
    `noise` (B,) uint64. Weights stay the same.
    """
    images, soft = batch["image"], batch["soft_label"]
    out = dict(batch, image=images.copy(), soft_label=soft.copy(), label=batch["label"].copy())

    def fill(row: int) -> None:
        # row ^ 1 is the partner of a row: 2k for 2k + 1, and 2k + 1 for 2k.
        draws, other = Draws(int(noise[row])), row ^ 1
        mix = mixes[draws.below(len(mixes))]
        # Partners may be mixed by two threads at once, so inputs are read from the unmixed arrays.
        if draws.chance(mix.share):
            out["image"][row], share = mix(images[row], images[other], draws)
            out["soft_label"][row] = np.float32(share) * soft[row] + np.float32(1 - share) * soft[other]
            out["label"][row] = batch["label"][row if share >= 0.5 else other]

    threads.each(fill, len(noise))
    return out


def with_partners(rows: Any, examples: np.ndarray) -> np.ndarray:
    """Return the consecutive numbers `examples`, completed to whole pairs where rows are mixed."""
    if not getattr(rows, "mixes", ()) or not len(examples):
        return examples
    return np.arange(examples[0] & ~1, (examples[-1] | 1) + 1)
