"""Generated scenes of real handwritten digits: several sizes, overlaps and clutter, with masks."""

import dataclasses
from pathlib import Path

import numpy as np

from bigmodel_jax.core.ranges import Count, CountOrZero, Seed, Share
from bigmodel_jax.data import cache
from bigmodel_jax.data.base import BadRecords
from bigmodel_jax.data.images import pictures
from bigmodel_jax.data.sources.source import Source
from bigmodel_jax.data.sources.sources import Tfds

FORMAT = 1  # raise it when a seed gives different scenes
INK = 64  # pixels from this value on belong to the digit
PIECE = 8  # side of a piece of clutter, in pixels
SMALLEST, LARGEST = 0.6, 1.1  # range of a digit's side, as a share of its original side
TRIES = 20  # attempts to place a digit before it is left out


@dataclasses.dataclass(frozen=True)
class DigitScenes(Source):
    """Square grey scenes. Scene n of a split depends only on the seed and n.

    A split's scenes contain digits of that split alone. A record has

    - image (H, W, 1) uint8;
    - mask (H, W) uint8: 0 for the background, 1 + digit for a digit's pixels;
    - boxes (N, 4): left, top, right and bottom in pixels around all ink of each digit;
    - classes (N,): 1 + digit.

    A later digit hides the earlier digits below it.
    """

    compared = {"train": "training"}  # noqa: RUF012 - as every source declares it

    train: Count = 6000
    "scenes of the training split"
    validation: Count = 500
    "scenes of the validation split"
    side: Count = 48
    "side of a scene in pixels; at least 32"
    digits: Count = 3
    "the most digits of a scene; each scene has at least one"
    overlap: Share = 0.2
    "how much of the other digits' ink a digit may hide, as a share"
    clutter: CountOrZero = 4
    "pieces of other digits, 8x8 pixels, that belong to the background"
    seed: Seed = 0
    "seeds the scenes"

    def __post_init__(self):
        if self.side < 32:
            raise ValueError(f"data.source.side = {self.side}; it must be 32 or more, for digits of up to 31 pixels")

    def labels(self):
        return ("ground", *map(str, range(10)))

    def fingerprint(self, split, root):
        fields = dataclasses.asdict(self)
        own = {name: x for name, x in fields.items() if name not in ("train", "validation")}
        return cache.key(FORMAT, own, fields[split], Tfds("mnist_5k").fingerprint(split, root))

    def reads(self, root: Path):
        return {"digits": Tfds("mnist_5k").reads(root)["name"]}

    def records(self, split, root, bad):
        found = [record for _, record in Tfds("mnist_5k").records(split, root, BadRecords(0))]
        images, labels = np.stack([x["image"][..., 0] for x in found]), np.array([x["label"] for x in found])
        for number in range(getattr(self, split)):
            rng = np.random.default_rng((self.seed, int(split == "train"), number))
            image, mask, boxes, classes = self._scene(rng, images, labels)
            record = {"image": image[..., None], "mask": mask, "boxes": boxes, "classes": classes}
            yield f"scene {number} of {split}", record

    def _scene(self, rng: np.random.Generator, images: np.ndarray, labels: np.ndarray):
        image = rng.integers(0, 40, (self.side, self.side), np.uint8)  # background noise
        mask, boxes, classes = np.zeros_like(image), [], []
        for _ in range(self.clutter):
            digit = images[rng.integers(len(images))]
            top, left = rng.integers(4, digit.shape[0] - 4 - PIECE, 2)
            piece = digit[top : top + PIECE, left : left + PIECE]
            place, ink = _place(rng, image, piece)
            image[place][ink] = piece[ink]
        for _ in range(rng.integers(1, self.digits + 1)):
            chosen = rng.integers(len(images))
            size = round(images.shape[1] * rng.uniform(SMALLEST, LARGEST))
            digit = np.asarray(pictures.to_pillow(images[chosen][..., None]).resize((size, size)))
            for _ in range(TRIES):
                place, ink = _place(rng, image, digit)
                # The digit stays if it hides few pixels of the others. Otherwise another place is
                # tried.
                if (mask[place][ink] > 0).sum() <= self.overlap * (mask > 0).sum():
                    image[place][ink] = digit[ink]
                    mask[place][ink] = 1 + labels[chosen]
                    boxes.append(_around(place, ink))
                    classes.append(1 + labels[chosen])
                    break
        return image, mask, np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64)


def _place(rng: np.random.Generator, image: np.ndarray, piece: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return (a random place of the piece on the image, which of the piece's pixels hold ink)."""
    top, left = (rng.integers(0, side - n + 1) for side, n in zip(image.shape, piece.shape, strict=True))
    return (slice(top, top + piece.shape[0]), slice(left, left + piece.shape[1])), piece >= INK


def _around(place: tuple[slice, slice], ink: np.ndarray) -> list[int]:
    """Return left, top, right and bottom of a piece's ink on the image."""
    rows, columns = np.nonzero(ink.any(axis=1))[0], np.nonzero(ink.any(axis=0))[0]
    top, left = place[0].start, place[1].start
    return [left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1]
