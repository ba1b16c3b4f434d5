"""Pictures from files to arrays."""

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from bigmodel_jax.core import paths

# Formats that Pillow decodes itself: for EPS it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
DEEP = {"I": "32-bit whole numbers", "F": "floating-point numbers"}  # Pillow's modes, whose white is unknown
MOST_PIXELS = 89_478_485  # Pillow's own bound, a quarter of a gibibyte in three channels, at which it only warns
TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
ORIENTATION = 0x0112
Box = tuple[float, float, float, float]  # left, top, width, height

# Each format has its own. The warning is raised where a user turns warnings into errors.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `opened` refuses those pictures


def read(path: Path) -> np.ndarray:
    """As `decode`, of a picture file."""
    if paths.is_remote(path):
        return decode(io.BytesIO(paths.read(path)), path)
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not a file")
    return decode(path, path)


def decode(file: Path | BinaryIO, name: object) -> np.ndarray:
    """A picture as (H, W, 3) uint8, turned as its EXIF data says; what is transparent lies on white.

    Pixels of 16 bits keep their upper 8, a colour profile is left aside. ValueError for what is no picture, whose pixels
    have no known white, or are more than MOST_PIXELS.
    """
    return _read(file, name, lambda picture: np.asarray(_upright(picture)))


def view(content: bytes, name: object, size: int, box_of: Callable[[int, int], Box], gap: float = 1) -> np.ndarray:
    """A part of an encoded picture, scaled to (size, size, 3) uint8 by antialiased bilinear interpolation.

    box_of: (width, height) of the upright picture -> the part. gap: a JPEG file is decoded at an eighth, a quarter or a
    half where the part is then still so many times `size` wide and high. Errors: as `decode`.
    """
    return _read(io.BytesIO(content), name, lambda picture: _cut(picture, size, box_of, gap))


def check(content: bytes, name: object) -> tuple[int, int]:
    """(width, height) of an encoded picture, upright, whose every byte was read; ValueError as `decode`."""

    def whole(picture: Image.Image) -> tuple[int, int]:
        size = _upright_size(picture)
        picture.draft(None, (1, 1))  # the bytes of a JPEG file are all read; the arithmetic is an eighth of it
        picture.load()
        return size

    return _read(io.BytesIO(content), name, whole)


def encode(image: np.ndarray) -> bytes:
    """(H, W, 1 or 3) uint8 as a PNG file: the same pixels again."""
    file = io.BytesIO()
    to_pillow(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def to_pillow(image: np.ndarray) -> Image.Image:
    """(H, W, 1 or 3) uint8 as a Pillow picture."""
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def from_pillow(picture: Image.Image) -> np.ndarray:
    """The inverse of `to_pillow`."""
    image = np.asarray(picture)
    return image if image.ndim == 3 else image[..., None]


def centre(share: float) -> Callable[[int, int], Box]:
    """The square in the middle whose side is this share of the shorter side."""

    def box(width: int, height: int) -> Box:
        side = share * min(width, height)
        return (width - side) / 2, (height - side) / 2, side, side

    return box


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


def fitted(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W, 3) uint8 in another shape: scaled and cut as `square` does, in grey where the shape has one channel.

    ValueError for a picture of another size where the shape is no square.
    """
    height, width, channels = shape
    if image.shape[:2] != (height, width):
        if height != width:
            raise ValueError(
                f"the picture has {image.shape[1]} x {image.shape[0]} pixels; it must be {width} x {height}"
            )
        image = square(image, height)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None] if channels == 1 else image


def _read[T](file: Path | BinaryIO, name: object, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of an opened picture; ValueError, one line, for one that cannot be used."""
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.mode in DEEP:
                raise ValueError(f"its pixels are {DEEP[picture.mode]}; 8 and 16 bits a channel are read")
            if math.prod(picture.size) > MOST_PIXELS:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels; {MOST_PIXELS:,} are read at most")
            return use(picture)
    except UNREADABLE as error:
        raise ValueError(f"{name} is not a readable picture ({str(error)[:100]})") from None


def _upright(picture: Image.Image) -> Image.Image:
    """In three channels of bytes, turned as its EXIF data says, on white."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.getexif().get(ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture  # `convert` would copy it
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    turned = picture.getexif().get(ORIENTATION) in TURNED
    return picture.size[::-1] if turned else picture.size


def _cut(picture: Image.Image, size: int, box_of: Callable[[int, int], Box], gap: float) -> np.ndarray:
    width, height = _upright_size(picture)
    left, top, across, down = box_of(width, height)
    wanted = gap * size / min(across, down)  # of the whole picture's scale
    picture.draft(None, tuple(math.ceil(wanted * side) for side in picture.size))
    upright = _upright(picture)
    x, y = upright.width / width, upright.height / height
    box = (left * x, top * y, min((left + across) * x, upright.width), min((top + down) * y, upright.height))
    return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box=box))
