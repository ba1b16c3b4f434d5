"""The page of an explanation: every number is on it, and a text of the user's stays text."""

import dataclasses
import io

import numpy as np

from bigmodel_jax.explain.arrays import ArrayExplanation
from bigmodel_jax.explain.explained import Explained
from bigmodel_jax.explain.integrated_gradients import Attributions
from bigmodel_jax.explain.subject import Answer
from bigmodel_jax.explain.texts import Lens, Patch, TextExplanation
from bigmodel_jax.report import heat
from bigmodel_jax.report.explain_page import build_explain_page

ANSWER = Answer(4, " <b>", ((" <b>", 0.75), (" c", 0.125)))
LENS = Lens([["x", " y"], ["z", " <b>"]], np.array([[0.5, 0.25], [1.0, 0.75]]), np.array([0.1, 0.75]), None)
PATCH = Patch(("^", " dog"), Answer(5, " e", ((" e", 1.0),)), "log p( <b>) - log p( e)", 2.0, -3.0, np.eye(2), 0)
TEXT = TextExplanation(
    pieces=("^", " <script>"),
    answer=ANSWER,
    next_token=True,
    baseline="<|endoftext|>",
    integrated=Attributions(np.ones((1, 2, 3)), 64, 6.0, 6.03),
    by_token=np.array([2.0, -1.0]),
    gradient=np.array([1.0, 3.0]),
    lens=LENS,
    maps=np.full((2, 3, 2, 2), 0.5),
    patch=PATCH,
)
PICTURE = ArrayExplanation(
    values=np.zeros((4, 4, 1)),
    answer=Answer(1, "cat", (("cat", 0.9), ("dog", 0.1))),
    integrated=Attributions(np.ones((1, 4, 4, 1)), 32, 5.0, 5.0),
    gradient=np.ones((4, 4, 1)),
    smooth=np.ones((4, 4, 1)),
    cam=np.eye(2),
    maps=None,
    rollout=None,
    first=0,
    lens=None,
)


def page(tmp_path, found: Explained) -> str:
    return build_explain_page(tmp_path, found, tmp_path / "explain.html").read_text()


def test_a_text_is_escaped_and_its_numbers_are_there(tmp_path):
    text = page(tmp_path, Explained(TEXT, "<script>", "a dog", kind="Llama", step=7))
    assert "<b> " not in text.replace("&lt;b&gt;", "")
    assert text.count("<script>") == 1, "the page's own"
    for shown in ("75.0%", "+6.03", "0.5 %", "64 steps", "+2.000", "-1.000", "&lt;|endoftext|&gt;", "-3.00", "+2.00"):
        assert shown in text, shown
    for title in ("Which tokens matter", "Logit lens", "Activation patching", "Attention", "All heads"):
        assert f"<h2>{title}</h2>" in text
    assert "from layer 1 on" in text
    assert "in layer 1, then" in text


def test_attributions_that_are_not_complete_say_so(tmp_path):
    assert "not complete" not in page(tmp_path, Explained(TEXT))
    far = dataclasses.replace(TEXT, integrated=Attributions(np.ones((1, 2, 3)), 2048, 6.0, 6.5))
    assert "apart, more than 1 %: not complete" in page(tmp_path, Explained(far))


def test_what_was_not_asked_for_has_no_section_and_no_source(tmp_path):
    text = page(tmp_path, Explained(dataclasses.replace(TEXT, patch=None, maps=None)))
    assert "Activation patching" not in text
    assert "arXiv:2202.05262" not in text
    assert "Attention</h2>" not in text
    assert "arXiv:1703.01365" in text


def test_a_picture_has_a_map_for_each_method(tmp_path):
    shown = np.linspace(0, 1, 16).reshape(4, 4, 1)
    text = page(tmp_path, Explained(PICTURE, "x.png", shown=shown, truth="dog"))
    for title in ("Input", "Integrated gradients", "Grad-CAM", "Saliency", "SmoothGrad"):
        assert f"<figcaption><b>{title}</b>" in text
    assert "Attention rollout" not in text
    assert "but it is labelled dog" in text


def test_a_row_of_a_table_has_a_bar_for_each_column_the_largest_first(tmp_path):
    values = np.array([[1.0, -4.0]])
    row = dataclasses.replace(
        PICTURE,
        values=values[0],
        answer=Answer(0, "price", (), 0.5),
        integrated=Attributions(values, 32, -3.0, -3.0),
        cam=None,
    )
    found = Explained(row, "Row 3", names=("size", "age"), shown=np.array([80.0, 30.0]), unit=10.0, mean=100.0)
    text = page(tmp_path, found)
    assert text.index("<th>age</th>") < text.index("<th>size</th>")
    for shown in ("105", "-40", "+10", "80", "30"):
        assert f">{shown}<" in text, shown


def test_values_are_scaled_by_their_largest_and_opacity_is_the_value():
    np.testing.assert_allclose(heat.scaled(np.array([1.0, -4.0, 0.0]), 100), [0.25, -1, 0])
    np.testing.assert_array_equal(heat.scaled(np.zeros(3)), 0)
    from matplotlib.image import imread  # not when tests are collected: it takes long

    pixels = imread(io.BytesIO(heat.png(np.array([[1.0, -0.5]]))))
    np.testing.assert_allclose(pixels[0, :, 3], [1, 0.5], atol=0.01)
    assert pixels[0, 0, 0] > pixels[0, 0, 2], "orange speaks for it"
    assert pixels[0, 1, 2] > pixels[0, 1, 0], "blue lowers it"
