"""The README shows these files whole; tests/config_file_test.py trains them."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["one_file_model.py", "own_flax_module.py"])
def test_the_readme_shows_the_file_whole(name):
    assert (HERE / name).read_text().strip() in (HERE.parents[1] / "README.md").read_text()
