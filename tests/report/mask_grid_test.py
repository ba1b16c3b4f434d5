"""A label's pixels have its colour, ground and unknown pixels have none, and the grid is a
picture."""

import numpy as np
from PIL import Image

from bigmodel_jax.report.mask_grid import STRENGTH, color_of, painted, write_masks


def test_labels_are_painted_over_the_picture():
    image, labels = np.full((2, 4, 1), 0.4), np.array([[0, 1, 1, -1], [0, 2, -1, -1]])
    out = painted(image, labels)
    np.testing.assert_allclose(out[labels == 0], 0.4)
    for label in (1, 2):
        color = np.array([int(color_of(label)[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        for pixel in out[labels == label]:
            np.testing.assert_allclose(pixel, (1 - STRENGTH) * 0.4 + STRENGTH * color, rtol=1e-6)
    unknown = out[labels < 0]
    assert (np.isclose(unknown, 0.4) | np.isclose(unknown, 0.5)).all()
    np.testing.assert_allclose(painted(image, None), 0.4)


def test_the_grid_is_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    masks = rng.integers(-1, 3, (3, 8, 10))
    write_masks(tmp_path / "masks.png", rng.random((3, 8, 10, 1)), masks, np.maximum(masks, 0), str)
    with Image.open(tmp_path / "masks.png") as picture:
        assert picture.width > picture.height > 100
