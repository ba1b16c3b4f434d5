"""Mixup and CutMix: training examples 2k and 2k + 1 are mixed with each other, each by random numbers of its own.

Pairs are those of example numbers and not of places in a batch, so a batch stays a function of its number on any number of
processes, and no picture is decoded twice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmodel_jax.core.ranges import Positive, Share
from bigmodel_jax.data.images.draws import Draws

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Mix:
    """Base of every way to mix two examples; share: of the examples that it is drawn for, how many it mixes."""

    share: Share = 1.0

    def __call__(self, image: np.ndarray, other: np.ndarray, draws: Draws) -> tuple[np.ndarray, float]:
        """(a new image, the share of `image`'s label in the mixed one); both (H, W, C) float32."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__()")


@dataclasses.dataclass(frozen=True)
class Mixup(Mix):
    """l x + (1 - l) x' with l from Beta(alpha, alpha) (Zhang et al. 2017, arXiv:1710.09412)."""

    alpha: Positive = 0.2

    def __call__(self, image, other, draws):
        share = draws.beta(self.alpha)
        return np.float32(share) * image + np.float32(1 - share) * other, share


@dataclasses.dataclass(frozen=True)
class CutMix(Mix):
    """A rectangle of x' in x, of area 1 - l with l from Beta(alpha, alpha), its middle anywhere; the label's share is that of
    the pixels that are left (Yun et al. 2019, arXiv:1905.04899)."""

    alpha: Positive = 1.0

    def __call__(self, image, other, draws):
        height, width = image.shape[:2]
        side = np.sqrt(1 - draws.beta(self.alpha))
        down, right = draws.below(height), draws.below(width)
        half = int(height * side) / 2, int(width * side) / 2
        rows = slice(max(int(down - half[0]), 0), max(int(down + half[0]), 0))
        columns = slice(max(int(right - half[1]), 0), max(int(right + half[1]), 0))
        image = image.copy()
        image[rows, columns] = other[rows, columns]
        return image, 1 - other[rows, columns, 0].size / (height * width)


def mixed(mixes: Sequence[Mix], batch: Batch, noise: np.ndarray) -> Batch:
    """A batch whose rows 2k and 2k + 1 are mixed: image (B, H, W, C), soft_label (B, classes), label (B,) of the larger share.

    noise: (B,) uint64. Each row draws one of `mixes`, all alike. Weights stay.
    """
    images, soft = batch["image"], batch["soft_label"]
    out = dict(batch, image=images.copy(), soft_label=soft.copy(), label=batch["label"].copy())
    for row, bits in enumerate(noise.tolist()):
        draws, other = Draws(bits), row ^ 1
        mix = mixes[draws.below(len(mixes))]
        if draws.chance(mix.share):
            out["image"][row], share = mix(images[row], images[other], draws)
            out["soft_label"][row] = np.float32(share) * soft[row] + np.float32(1 - share) * soft[other]
            out["label"][row] = batch["label"][row if share >= 0.5 else other]
    return out


def with_partners(rows: Any, examples: np.ndarray) -> np.ndarray:
    """The example numbers that have to be read for these, which follow one another: whole pairs where rows are mixed."""
    if not getattr(rows, "mixes", ()) or not len(examples):
        return examples
    return np.arange(examples[0] & ~1, (examples[-1] | 1) + 1)
