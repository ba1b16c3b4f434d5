"""Draw pictures with their true boxes and the model's boxes, as one PNG."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bigmodel_jax.metrics.boxes import Boxes
from bigmodel_jax.report.mask_grid import color_of

INCHES, LONGEST = 1.7, 12  # a picture's side in inches; longest class name in characters


def write_boxes(
    path: Path, images: np.ndarray, true: Sequence[Boxes], found: Sequence[Boxes], name_of: Callable[[int], str]
) -> None:
    """Draw two rows of pictures: true boxes above, the model's boxes below.

    images: (N, H, W, 1 or 3) in 0 .. 1. Each box carries its class name. A box that the model found
    also carries its probability in percent.
    """
    from matplotlib.figure import Figure

    columns = len(images)
    height = INCHES * images.shape[1] / images.shape[2]
    figure = Figure(figsize=(columns * INCHES + 0.5, 2 * height + 0.2), layout="constrained", facecolor="white")
    rows = (("true", true), ("model", found))
    for (title, boxes), line in zip(rows, figure.subplots(2, columns, squeeze=False), strict=True):
        for n, axes in enumerate(line):
            # A single channel would be drawn in the default colour map, not in grey.
            axes.imshow(np.broadcast_to(images[n], (*images[n].shape[:2], 3)), vmin=0, vmax=1)
            _draw(axes, boxes[n], name_of)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlim(-0.5, images.shape[2] - 0.5)
            axes.set_ylim(images.shape[1] - 0.5, -0.5)
        line[0].set_ylabel(title, fontsize=9)
    figure.savefig(path, dpi=120)


def _draw(axes, boxes: Boxes, name_of: Callable[[int], str]) -> None:
    from matplotlib.patches import Rectangle

    for n, (left, top, right, bottom) in enumerate(np.asarray(boxes.corners) - 0.5):  # pixel centres are whole numbers
        label = int(boxes.labels[n])
        color, name = color_of(label), name_of(label)[:LONGEST]
        said = name if boxes.scores is None else f"{name} {100 * boxes.scores[n]:.0f}"
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.5))
        around = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 0.6}
        # The name of a box that begins above the picture would be cut off.
        axes.text(left, max(top, 0), said, color=color, fontsize=7, va="top", clip_on=True, bbox=around)
