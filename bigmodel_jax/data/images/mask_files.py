"""Reads segmentation masks from files, and resizes images together with their masks."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from bigmodel_jax.data.images import pictures

Fit = Literal["crop", "pad", "resize"]
MODES = ("1", "L", "P", "I;16")  # Pillow's modes with one number per pixel


def read_mask(path: Path) -> np.ndarray:
    """Return a mask file as (H, W) uint8: the pixel values, or the indices of a palette.

    Raises ValueError if the file is not a mask.
    """
    try:
        with Image.open(path, formats=pictures.FORMATS) as picture:
            if picture.mode not in MODES:
                raise ValueError(f"its pixels are {picture.mode}; a mask is grey, or has a palette")
            found = np.asarray(picture)
    except pictures.UNREADABLE as error:
        raise ValueError(f"{path} is not a readable mask ({str(error)[:100]})") from None
    if found.max(initial=0) > 255:
        raise ValueError(f"{path} is not a readable mask (it holds {found.max()}; labels go up to 255)")
    return found.astype(np.uint8)


def fitted(
    image: np.ndarray, mask: np.ndarray, size: tuple[int, int], fit: Fit, around: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image (H, W, C) uint8 and its mask (H, W) uint8 to `size` (height, width).

    - crop: scale until the size is covered, and cut at the centre.
    - pad: scale until the image fits, and pad on the right and below with black. The mask gets the
      label `around` there.
    - resize: stretch to the size.

    Images are interpolated bilinearly. Masks use the nearest pixel, which keeps their labels.
    """
    height, width = image.shape[:2]
    across, down = size[1] / width, size[0] / height
    left = top = 0.0
    if fit == "crop":
        scale = max(across, down)
        left, top = (width - size[1] / scale) / 2, (height - size[0] / scale) / 2
    # box is the part of the image that is scaled to `inner`.
    box = (left, top, width - left, height - top)
    inner = size
    if fit == "pad":
        scale = min(across, down)
        inner = (max(round(height * scale), 1), max(round(width * scale), 1))
    image = _scaled(image, inner, box, Image.Resampling.BILINEAR)
    mask = _scaled(mask[..., None], inner, box, Image.Resampling.NEAREST)[..., 0]
    more = [(0, size[0] - inner[0]), (0, size[1] - inner[1])]
    return np.pad(image, [*more, (0, 0)]), np.pad(mask, more, constant_values=around)


def _scaled(image: np.ndarray, size: tuple[int, int], box: tuple, how: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == size and box == (0, 0, size[1], size[0]):
        return image
    return pictures.from_pillow(pictures.to_pillow(image).resize((size[1], size[0]), how, box=box))
