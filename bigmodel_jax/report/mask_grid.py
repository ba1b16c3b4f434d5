"""Draw pictures, their true masks and a model's predictions, as one PNG."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

INCHES = 1.35  # side of one picture
STRENGTH = 0.75  # opacity of a class's colour over the grey picture
# Twenty colours that differ clearly on grey. Class 0, usually the background, has none.
COLORS = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4"),
    *("#469990", "#dcbeff", "#9a6324", "#fffac8", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075", "#a9a9a9"),
)


def write_masks(
    path: Path, images: np.ndarray, masks: np.ndarray, predicted: np.ndarray, name_of: Callable[[int], str]
) -> None:
    """Write three rows: pictures, true masks, predictions, with a legend of their classes.

    images: (N, H, W, 1 or 3) in 0 .. 1. masks, predicted: class numbers (N, H, W). A mask of -1
    means that the class is unknown. It is hatched in grey.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = len(images)
    height = INCHES * images.shape[1] / images.shape[2]
    figure = Figure(figsize=(columns * INCHES + 0.5, 3 * height + 0.6), layout="constrained", facecolor="white")
    rows = (("image", None), ("mask", masks), ("model", predicted))
    for (title, labels), line in zip(rows, figure.subplots(3, columns, squeeze=False), strict=True):
        for n, axes in enumerate(line):
            axes.imshow(painted(images[n], None if labels is None else labels[n]), vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(title, fontsize=9)
    # Neither the background (0) nor unknown pixels (-1) have a colour to explain.
    shown = [int(c) for c in np.unique([masks, predicted]) if c > 0]
    patches = [Patch(color=color_of(c), label=name_of(c)) for c in shown]
    if patches:
        figure.legend(
            handles=patches, loc="outside lower center", ncols=min(len(patches), 12), fontsize=8, frameon=False
        )
    figure.savefig(path, dpi=120)


def color_of(label: int) -> str:
    """The colour of a class above 0; colours repeat after twenty classes."""
    return COLORS[(label - 1) % len(COLORS)]


def painted(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """An RGB picture (H, W, 3) in 0 .. 1.

    With labels, the picture is grey under the labels' colours.

    labels: class numbers (H, W), or None.
    """
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    if labels is None:
        return image
    out = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    for label in np.unique(labels[labels > 0]):
        color = np.array([int(color_of(int(label))[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        here = labels == label
        out[here] = (1 - STRENGTH) * out[here] + STRENGTH * color
    # Unknown pixels get diagonal stripes.
    rows, across = np.nonzero(labels < 0)
    striped = (rows + across) % 4 < 2
    out[rows[striped], across[striped]] = 0.5
    return out
