"""Images in requests and answers, as base64 of image files."""

import base64
import binascii
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigmodel_jax.serve.refused import Refused


def read(data: Any, text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The image in a base64 text or a data URL, prepared as in evaluation.

    data: the run's data config; shape: the image shape that the model reads. Raises Refused where
    the text is no image.
    """
    try:
        content = base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError):
        raise Refused("image is no base64 of a picture's file", "image") from None
    with tempfile.NamedTemporaryFile(suffix=".png") as file:  # the data config reads images from files
        file.write(content)
        file.flush()
        try:
            found = data.picture(Path(file.name), shape)
        except (ValueError, OSError, Image.DecompressionBombError) as error:
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
