"""Turns images of any shape into equal squares: the whole image, optionally preceded by tiles of
it.

Shapes: H height, W width, N squares, S pixels per side.
"""

import math

import numpy as np
from PIL import Image

from bigmodel_jax.data.images import pictures


def padded(image: np.ndarray, size: int) -> np.ndarray:
    """Scale (H, W, 3) uint8 to (S, S, 3) by the longer side, centred on white."""
    side = max(image.shape[:2])
    canvas = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return pictures.square(canvas, size)


def stretched(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Stretch (H, W, 3) uint8 to (height, width, 3)."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


FITS = {"cut": pictures.square, "pad": padded}


def grid(height: int, width: int, most: int) -> tuple[int, int]:
    """Return (rows, columns) of at most `most` tiles with an aspect ratio nearest to the image's.

    If several grids are equally near, the largest one is taken.
    """
    found = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]

    def apart(shape: tuple[int, int]) -> tuple[float, int]:
        # The distance is that of logarithms: a grid that is too wide by a factor is as far off as a
        # grid that is too high by that factor.
        return abs(math.log(shape[1] / shape[0]) - math.log(width / height)), -shape[0] * shape[1]

    return min(found, key=apart)


def squares(image: np.ndarray, size: int, most: int, fit: str) -> np.ndarray:
    """Return squares (N, S, S, 3) uint8, the last of which is the whole image as `fit` says.

    Where `most` is 2 or more, up to this many tiles come first, row by row. The image is stretched
    to the grid of the tiles.
    """
    whole = FITS[fit](image, size)[None]
    if most < 2:
        return whole
    rows, columns = grid(*image.shape[:2], most)
    cut = stretched(image, rows * size, columns * size).reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return np.concatenate([cut.reshape(-1, size, size, 3), whole])
