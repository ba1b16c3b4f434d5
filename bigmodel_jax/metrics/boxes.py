"""Mean average precision of detected boxes by the COCO challenge's rules (faster-coco-eval)."""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Boxes(NamedTuple):
    """The boxes of one picture, found or true.

    corners (N, 4): left, top, right and bottom, in pixels.
    labels (N,): integer class numbers.
    scores (N,): confidences from 0 to 1; None for true boxes.
    """

    corners: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


def mean_average_precision(found: Sequence[Boxes], true: Sequence[Boxes]) -> dict[str, float]:
    """Mean average precision {"map", "map50", "map75"}: at overlaps .50 to .95, at .50, at .75.

    Each number is a mean over the classes that have true boxes, and NaN where no picture has a true
    box. `found` and `true` hold one `Boxes` a picture. Only the 100 boxes with the highest scores
    of a picture count. Raises ValueError for lists of unequal length, boxes without extent and
    missing scores.
    """
    _check(found, true)
    if not any(len(boxes.labels) for boxes in true):
        return dict.fromkeys(("map", "map50", "map75"), float("nan"))
    coco = importlib.import_module("faster_coco_eval")
    categories = sorted({int(label) for boxes in (*true, *found) for label in boxes.labels})
    about = {
        "images": [{"id": n} for n in range(len(true))],
        "categories": [{"id": c, "name": str(c)} for c in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its table to stdout
        truth = coco.COCO(about | {"annotations": list(_rows(true))})
        # `loadRes` fails for an empty list, so a result without boxes is a data set of its own.
        guess = truth.loadRes(rows) if (rows := list(_rows(found))) else coco.COCO(about | {"annotations": []})
        judge = coco.COCOeval_faster(truth, guess, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(("map", "map50", "map75"), map(float, judge.stats[:3]), strict=True))


def _check(found: Sequence[Boxes], true: Sequence[Boxes]) -> None:
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ValueError("mean average precision needs the package faster-coco-eval: uv sync --extra metrics")
    if len(found) != len(true):
        raise ValueError(
            f"mean average precision got the found boxes of {len(found)} pictures and the true boxes of {len(true)}"
        )
    for kind, pictures in (("found", found), ("true", true)):
        for n, boxes in enumerate(pictures):
            corners = np.asarray(boxes.corners, np.float64).reshape(-1, 4)
            sizes = [len(x) for x in (boxes.labels, boxes.scores) if x is not None]
            if any(size != len(corners) for size in sizes) or (kind == "found" and boxes.scores is None):
                raise ValueError(f"{kind} boxes of picture {n}: each needs a label{' and a score' * (kind == 'found')}")
            if not (np.isfinite(corners).all() and (corners[:, 2:] > corners[:, :2]).all()):
                raise ValueError(f"{kind} boxes of picture {n}: right and bottom must lie beyond left and top")


def _rows(pictures: Sequence[Boxes]):
    """Yields the boxes as COCO annotations (left, top, width, height), with ids that
    count from 1.
    """
    number = 0
    for n, boxes in enumerate(pictures):
        for i, (left, top, right, bottom) in enumerate(np.asarray(boxes.corners, np.float64).reshape(-1, 4).tolist()):
            # The evaluation marks an unmatched box by the id 0, so ids begin at 1.
            number += 1
            width, height = right - left, bottom - top
            row = {"id": number, "image_id": n, "category_id": int(boxes.labels[i]), "bbox": [left, top, width, height]}
            row |= {"area": width * height, "iscrowd": 0}
            yield row | ({} if boxes.scores is None else {"score": float(boxes.scores[i])})
