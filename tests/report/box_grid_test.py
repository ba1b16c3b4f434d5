"""The picture of true and found boxes: written, in the classes' colours, also without any box."""

import numpy as np
from PIL import Image, ImageColor

from bigmodel_jax.metrics.boxes import Boxes
from bigmodel_jax.report.box_grid import write_boxes
from bigmodel_jax.report.mask_grid import color_of


def test_boxes_have_the_colours_of_their_classes(tmp_path):
    images = np.full((2, 32, 48, 1), 0.5, np.float32)
    none = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    true = [Boxes(np.array([[4, 4, 20, 28]]), np.array([1])), none]
    found = [Boxes(np.array([[5, 4, 21, 28]]), np.array([2]), np.array([0.93])), none]
    write_boxes(tmp_path / "boxes.png", images, true, found, str)
    pixels = np.asarray(Image.open(tmp_path / "boxes.png").convert("RGB")).astype(int)
    left, right = np.split(pixels, [pixels.shape[1] // 2 + 10], axis=1)
    for label in (1, 2):
        near = [np.abs(half - ImageColor.getrgb(color_of(label))).max(axis=2) < 12 for half in (left, right)]
        assert near[0].sum() > 100
        assert not near[1].any(), "the second picture has no boxes"
