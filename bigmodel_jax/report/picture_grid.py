"""Draw generated images as one PNG."""

import math
import textwrap
from pathlib import Path

import numpy as np

INCHES = 1.5  # side of one picture
MOST_COLUMNS = 5


def write_grid(path: Path, images: np.ndarray, titles: list[str]) -> None:
    """Write a grid of images (N, H, W, 1 or 3) in 0 .. 1, each under its title.

    Pixels stay square.
    """
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(columns * INCHES, rows * 1.25 * INCHES), layout="constrained", facecolor="white")
    for axes, image, title in zip(
        np.ravel(figure.subplots(rows, columns, squeeze=False)), images, titles, strict=False
    ):
        # Matplotlib takes a grey picture only without a channel axis, and would rescale its values.
        axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axes.set_title("\n".join(textwrap.wrap(title, 18)[:2]), fontsize=8)
    # All axes are switched off, also those that no image fills.
    for axes in figure.axes:
        axes.set_axis_off()
    figure.savefig(path, dpi=120)
