"""Keep a sheet of training pictures in a run's folder, and show it with labels on its page."""

import base64
import json
from html import escape
from pathlib import Path

import numpy as np

from bigmodel_jax.core import files
from bigmodel_jax.data.images import pictures
from bigmodel_jax.report import elements

FILE = "training_images.json"
NUM = 15  # pictures on a sheet
MOST_PIXELS = 112  # longest side; larger pictures keep every second or third pixel


def write(run_dir: Path, images: np.ndarray, titles: list[str]) -> None:
    """Save pictures (N, H, W, 1 or 3) float32 in 0 .. 1, with one title each."""
    # Keep every n-th pixel, so that the longest side fits.
    step = -(-max(images.shape[1:3]) // MOST_PIXELS)
    octets = np.round(255 * images[:, ::step, ::step]).astype(np.uint8)
    kept = [
        {"title": title, "png": base64.b64encode(pictures.encode(image)).decode()}
        for image, title in zip(octets, titles, strict=True)
    ]
    files.replace(run_dir / FILE, json.dumps(kept, ensure_ascii=False) + "\n")


def grid(run_dir: Path) -> str:
    """A run's sheet as HTML. It is empty if its folder has none."""
    try:
        kept = json.loads((run_dir / FILE).read_text())
        cells = [(elements.png(base64.b64decode(one["png"]), one["title"]), escape(one["title"])) for one in kept]
    except FileNotFoundError:
        return ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return elements.panel(f"{FILE} is damaged; the next start of the run writes it again.")
    figures = "".join(f"<figure>{image}<figcaption>{title}</figcaption></figure>" for image, title in cells)
    return f'<div class="sheet">{figures}</div>'
