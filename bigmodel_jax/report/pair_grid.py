"""Draw pictures above what a model made of them, as one PNG."""

from pathlib import Path

import numpy as np

INCHES = 1.35  # a picture's side


def write_pairs(path: Path, images: np.ndarray, made: np.ndarray, titles: tuple[str, str]) -> None:
    """Write two rows of pictures (N, H, W, 1 or 3) in 0 .. 1, named by `titles`. Pixels stay
    square.
    """
    from matplotlib.figure import Figure

    height = INCHES * images.shape[1] / images.shape[2]
    size = (len(images) * INCHES + 0.5, 2 * height + 0.3)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(2, len(images), squeeze=False)
    for line, pictures, title in zip(grid, (images, made), titles, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            # Matplotlib takes a grey picture only without a channel axis, and would rescale its
            # values.
            axes.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(title, fontsize=9)
    figure.savefig(path, dpi=120)
