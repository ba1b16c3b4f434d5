"""Pictures from files to arrays."""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from bigmodel_jax.core import paths

# Formats that Pillow decodes itself: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
DEEP = {"I": "32-bit whole numbers", "F": "floating-point numbers"}  # Pillow's modes, whose white is unknown


def read(path: Path) -> np.ndarray:
    """As `decode`, of a picture file."""
    if paths.is_remote(path):
        return decode(io.BytesIO(paths.read(path)), path)
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not a file")
    return decode(path, path)


def decode(file: Path | BinaryIO, name: object) -> np.ndarray:
    """A picture as (H, W, 3) uint8, turned as its EXIF data says; what is transparent lies on white.

    Pixels of 16 bits keep their upper 8. ValueError for what is no picture, or whose pixels have no known white.
    """
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.mode in DEEP:
                raise ValueError(f"its pixels are {DEEP[picture.mode]}; 8 and 16 bits a channel are read")
            if picture.mode.startswith("I;16"):
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            picture = ImageOps.exif_transpose(picture).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # each format has its own
        raise ValueError(f"{name} is not a readable picture ({str(error)[:100]})") from None
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def square(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) uint8 -> (size, size, C): scaled by its shorter side, cut at the centre, as CLIP's images are."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = image[top : top + side, left : left + side]
    if side == size:
        return cut
    channels = [
        Image.fromarray(cut[..., c]).resize((size, size), Image.Resampling.BICUBIC) for c in range(cut.shape[2])
    ]
    return np.stack([np.asarray(c) for c in channels], axis=2)
