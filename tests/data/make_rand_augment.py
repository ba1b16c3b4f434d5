"""Writes what torchvision's RandAugment makes of one picture, each change at some magnitudes, as
digests.

Runs in a Python of its own that has torch, torchvision and Pillow, and imports nothing of the
project:

    python tests/data/make_rand_augment.py tests/data/fixtures/rand_augment.json
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import torchvision
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

HEIGHT, WIDTH, BINS = 33, 45, 31


def picture() -> Image.Image:
    """A picture with slopes in three directions and noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    slopes = np.stack([3 * y, 4 * x, 2 * (x + y)], axis=-1)
    noise = np.random.Generator(np.random.PCG64(7)).integers(0, 60, (HEIGHT, WIDTH, 3))
    return Image.fromarray((20 + slopes + noise).clip(0, 255).astype(np.uint8))


def main() -> None:
    found = {}
    for magnitude in (0, 5, 9, 17, 30):
        space = RandAugment(num_ops=2, magnitude=magnitude)._augmentation_space(BINS, (HEIGHT, WIDTH))
        for name, (magnitudes, signed) in space.items():
            amount = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            for sign in (1, -1) if signed else (1,):
                made = _apply_op(picture(), name, sign * amount, interpolation=InterpolationMode.NEAREST, fill=None)
                digest = hashlib.sha256(np.asarray(made).tobytes()).hexdigest()[:16]
                found[f"{name} {magnitude} {sign}"] = digest
    versions = {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    Path(sys.argv[1]).write_text(json.dumps({"versions": versions, "digests": found}, indent=0) + "\n")


if __name__ == "__main__":
    main()
