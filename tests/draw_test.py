"""The pictures in docs/images are those that docs/draw.py draws from the code of now."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script():
    """docs/draw.py as a module."""
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = script()


@pytest.mark.parametrize("name", draw.PICTURES)
def test_a_picture_is_what_the_code_says(name):
    drawn = draw.PICTURES[name]()
    assert (ROOT / f"docs/images/{name}.svg").read_text() == drawn, "uv run docs/draw.py draws the pictures again"


@pytest.mark.parametrize(("where", "message"), [("training.stepp:train_step", "exist"), ("training.step:go", "no go")])
def test_a_picture_names_only_what_exists(where, message):
    with pytest.raises(ValueError, match=message):
        draw.named(where)


@pytest.mark.parametrize("name", draw.PICTURES)
def test_text_is_large_enough_for_a_small_screen(name):
    """A picture is at most 640 units wide, and no text is below 20 units: 12 pixels at a width of
    390."""
    text = (ROOT / f"docs/images/{name}.svg").read_text()
    assert f'viewBox="0 0 {draw.WIDTH} ' in text
    assert draw.WIDTH <= 640
    assert min(int(part.split('"')[0]) for part in text.split('font-size="')[1:]) >= 20
