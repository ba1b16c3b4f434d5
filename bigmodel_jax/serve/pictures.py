"""Images in requests and answers, as base64 of image files."""

import base64
import binascii
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigmodel_jax.data.images.pictures import FORMATS, MOST_PIXELS, UNREADABLE
from bigmodel_jax.serve.refused import Refused


def read(data: Any, texts: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """The images in base64 texts or data URLs, prepared as in evaluation.

    data: the run's data config; shape: the image shape that the model reads. Raises Refused where
    a text is no image, or where all together have too many pixels.
    """
    try:
        # `rpartition` also takes a text without this prefix, which is no data URL but base64 alone.
        contents = [base64.b64decode(text.rpartition("base64,")[2], validate=True) for text in texts]
    except (binascii.Error, ValueError):
        raise Refused("image is no base64 of a picture's file", "image") from None
    # A file of kilobytes may hold an image of a quarter of a GiB.
    if (num := sum(map(_num_pixels, contents))) > MOST_PIXELS:
        raise Refused(f"image: {num:,} pixels; all images may have {MOST_PIXELS:,} together", "image")
    return np.stack([_read(data, content, shape) for content in contents])


def _num_pixels(content: bytes) -> int:
    """The number of pixels that an image's header states; 0 where there is no such header."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return math.prod(picture.size)
    except UNREADABLE:
        return 0


def _read(data: Any, content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".png") as file:  # the data config reads images from files
        file.write(content)
        file.flush()
        try:
            found = data.picture(Path(file.name), shape)
        except UNREADABLE as error:
            raise Refused(f"image: {str(error).replace(file.name, 'it')}", "image") from None
    if found is None:
        raise Refused(f"a model of {type(data).__name__} reads no pictures", "image")
    return found


def written(images: np.ndarray) -> list[str]:
    """PNG files in base64 of images (N, H, W, 1 or 3) with values from 0 to 1."""
    out = []
    for image in np.round(np.clip(images, 0, 1) * 255).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
        out.append(base64.b64encode(file.getvalue()).decode())
    return out
