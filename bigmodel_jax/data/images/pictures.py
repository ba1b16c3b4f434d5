"""Decodes image files to arrays."""

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from bigmodel_jax.core import paths

# The formats that Pillow decodes itself. For EPS it would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pillow modes in which the value of white is unknown.
DEEP = {"I": "32-bit whole numbers", "F": "floating-point numbers"}
MOST_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a GiB in three channels, at which Pillow only warns
TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
# EXIF orientation -> how Pillow turns the image upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
Box = tuple[float, float, float, float]  # left, top, width, height

# Each format raises its own type. The warning is an exception where a user turns warnings into
# errors.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_read` refuses those images


def read(path: Path) -> np.ndarray:
    """Read an image file as `decode` does."""
    if paths.is_remote(path):
        return decode(io.BytesIO(paths.read(path)), path)
    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path} is not a file")
    return decode(path, path)


def decode(file: Path | BinaryIO, name: object) -> np.ndarray:
    """Return an image as (H, W, 3) uint8, rotated by its EXIF orientation, on a white background.

    16-bit values keep their upper 8 bits, and colour profiles are ignored. Raises ValueError for a
    file that is no image, whose value of white is unknown, or that has more than MOST_PIXELS
    pixels.
    """
    return _read(file, name, lambda picture: np.asarray(_upright(picture)))


def view(content: bytes, name: object, size: int, box_of: Callable[[int, int], Box], gap: float = 1) -> np.ndarray:
    """Return a rectangle of an encoded image, resized to (size, size, 3) uint8.

    - box_of: maps (width, height) of the upright image to the rectangle.
    - gap: a JPEG file is decoded at 1/8, 1/4 or 1/2 of its size, as long as the rectangle is then
      still `gap` times as wide and high as `size`.

    The interpolation is bilinear with antialiasing. Errors are those of `decode`.
    """
    return _read(io.BytesIO(content), name, lambda picture: _cut(picture, size, box_of, gap))


def check(content: bytes, name: object) -> tuple[int, int]:
    """Read all of an encoded image, and return its upright (width, height); errors as `decode`."""

    def whole(picture: Image.Image) -> tuple[int, int]:
        size = _upright_size(picture)
        picture.draft(None, (1, 1))  # all bytes of a JPEG are read, but decoding at 1/8 of the size is cheap
        picture.load()
        return size

    return _read(io.BytesIO(content), name, whole)


def encode(image: np.ndarray) -> bytes:
    """Encode (H, W, 1 or 3) uint8 as a PNG file without loss."""
    file = io.BytesIO()
    to_pillow(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def to_pillow(image: np.ndarray) -> Image.Image:
    """Convert (H, W, 1 or 3) uint8 to a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))


def from_pillow(picture: Image.Image) -> np.ndarray:
    """Convert a Pillow image to (H, W, 1 or 3) uint8: the inverse of `to_pillow`."""
    image = np.asarray(picture)
    return image if image.ndim == 3 else image[..., None]


def centre(share: float) -> Callable[[int, int], Box]:
    """Return a function that gives the centred square with this share of the shorter side."""

    def box(width: int, height: int) -> Box:
        side = share * min(width, height)
        return (width - side) / 2, (height - side) / 2, side, side

    return box


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, C) uint8 to (size, size, C) by the shorter side, cut at the centre."""
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
    """Bring an image (H, W, 3) uint8 to another shape, scaled and cut as `square` does.

    It becomes grey where the shape has one channel. Raises ValueError for an image of another size
    where the shape is not square.
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
    """Open an image and return use(image). Raises a one-line ValueError on failure."""
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.mode in DEEP:
                raise ValueError(f"its pixels are {DEEP[picture.mode]}; 8 and 16 bits a channel are read")
            if math.prod(picture.size) > MOST_PIXELS:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels; {MOST_PIXELS:,} are read at most")
            return use(picture)
    except UnidentifiedImageError:  # its own message has the address of an object
        raise ValueError(
            f"{name} is not a readable picture (it has none of the formats {', '.join(FORMATS)})"
        ) from None
    except UNREADABLE as error:
        raise ValueError(f"{name} is not a readable picture ({str(error)[:100]})") from None


def _upright(picture: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB, rotated by its EXIF orientation, on a white background."""
    # First, because a picture made of an array has no EXIF data. ImageOps.exif_transpose also
    # rewrites that data, and fails where a tag has a wrong type.
    if (turn := TURNS.get(picture.getexif().get(ORIENTATION))) is not None:
        picture = picture.transpose(turn)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture  # `convert` would make a copy
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
    wanted = gap * size / min(across, down)  # the least scale at which the whole image must be decoded
    # draft lets the JPEG decoder skip detail. Other formats ignore it.
    picture.draft(None, tuple(math.ceil(wanted * side) for side in picture.size))
    upright = _upright(picture)
    # The image may have been decoded at a smaller scale, so the box is scaled with it.
    x, y = upright.width / width, upright.height / height
    box = (left * x, top * y, min((left + across) * x, upright.width), min((top + down) * y, upright.height))
    return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box=box))
