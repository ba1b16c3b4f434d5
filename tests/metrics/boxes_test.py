"""Average precision of boxes: torchmetrics' published example, the definition written out, and one
line for bad input."""

import numpy as np
import pytest

from bigmodel_jax.metrics.boxes import Boxes, mean_average_precision


def boxes(corners, labels, scores=None):
    return Boxes(
        np.array(corners, float).reshape(-1, 4), np.array(labels, int), None if scores is None else np.array(scores)
    )


def test_torchmetrics_published_example():
    """The example is
    https://lightning.ai/docs/torchmetrics/stable/detection/mean_average_precision.html: map 0.6,
    map_50 1, map_75 1."""
    found = boxes([[258.0, 41.0, 606.0, 285.0]], [0], [0.536])
    true = boxes([[214.0, 41.0, 562.0, 285.0]], [0])
    result = mean_average_precision([found], [true])
    assert result == pytest.approx({"map": 0.6, "map50": 1.0, "map75": 1.0}, abs=1e-6)


def test_the_mean_is_over_classes_and_interpolates_precision():
    """Class 1 is found in both pictures. Class 2 has a false box above the right one, so its
    precision is 1/2 at every recall."""
    a, b = [0, 0, 10, 10], [20, 20, 40, 40]
    true = [boxes([a, b], [1, 2]), boxes([a], [1])]
    found = [boxes([a, [60, 60, 80, 80], b], [1, 2, 2], [0.9, 0.9, 0.4]), boxes([a], [1], [0.8])]
    assert mean_average_precision(found, true)["map"] == pytest.approx((1 + 0.5) / 2, abs=1e-6)


def test_a_picture_without_boxes_is_no_error():
    nothing, one = boxes([], []), boxes([[0, 0, 4, 4]], [3])
    empty = boxes([], [], [])
    assert mean_average_precision([empty], [one])["map"] == 0
    assert np.isnan(mean_average_precision([boxes([[0, 0, 4, 4]], [3], [0.5])], [nothing])["map"])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "found boxes of 0 pictures and the true boxes of 1"),
        ([boxes([[0, 0, 1, 1]], [0])], "found boxes of picture 0: each needs a label and a score"),
        (
            [boxes([[3, 0, 1, 1]], [0], [0.5])],
            "found boxes of picture 0: right and bottom must lie beyond left and top",
        ),
        ([boxes([[0, 0, np.nan, 1]], [0], [0.5])], "right and bottom must lie beyond"),
    ],
)
def test_bad_boxes_are_one_line(found, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(found, [boxes([[0, 0, 1, 1]], [0])])
