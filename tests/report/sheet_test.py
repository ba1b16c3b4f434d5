"""The sheet of training images: kept small, on the run's page under its labels, and said to be
damaged where it is."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import run_folders as folders
from bigmodel_jax.report import sheet
from bigmodel_jax.report.page import build_report


@pytest.mark.parametrize(("side", "kept"), [(8, 8), (112, 112), (224, 112), (300, 100)])
def test_large_images_are_kept_small(side, kept, tmp_path):
    image = np.linspace(0, 1, side * side * 3).reshape(1, side, side, 3).astype(np.float32)
    sheet.write(tmp_path, image, ["cat"])
    (one,) = json.loads((tmp_path / sheet.FILE).read_text())
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["png"]))))
    step = side // kept
    np.testing.assert_array_equal(found, np.round(255 * image[0, ::step, ::step]))


def test_the_page_shows_each_image_over_its_labels(tmp_path):
    run = folders.labelled_run(tmp_path / "run")
    assert "Training images" not in build_report([run], tmp_path / "none.html").read_text()
    titles = ["cat 0.70 + <dog> 0.30", "cat"]
    sheet.write(run, np.zeros((2, 8, 8, 1), np.float32), titles)
    text = build_report([run], tmp_path / "page.html").read_text()
    assert "Training images" in text
    assert "<figcaption>cat 0.70 + &lt;dog&gt; 0.30</figcaption>" in text
    assert text.count("<figcaption>cat</figcaption>") == 1


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '[{"title": "x"}]', '[{"title": "x", "png": "a"}]'])
def test_a_damaged_sheet_is_said(content, tmp_path):
    (tmp_path / sheet.FILE).write_text(content)
    assert "training_images.json is damaged" in sheet.grid(tmp_path)
